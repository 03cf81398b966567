package proxy

import (
	"io"
	"net/http"
	"sync"
)

// tunnel is a connection to a server that has changed its protocol.
type tunnel interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// upgrade lets client and server speak another protocol from now on.
func (x *exchange) upgrade(r *http.Response) (more bool) {
	server, ok := r.Body.(tunnel)
	if !ok || upgrades(x.request.Header) == "" {
		_ = r.Body.Close()
		return x.explain(http.StatusBadGateway, "bad gateway", "the server changes to a protocol that was not asked for")
	}
	defer server.Close()
	x.breakWatch()
	x.status = r.StatusCode
	h := endToEnd(r.Header)
	h["Connection"], h["Upgrade"] = []string{"Upgrade"}, r.Header["Upgrade"]
	x.startLine(r.StatusCode, http.StatusText(r.StatusCode))
	_ = h.Write(x.out)
	x.line("")
	if x.out.Flush() != nil {
		x.broken = true
		return false
	}
	var back sync.WaitGroup
	var downErr error
	back.Go(func() { _, downErr = x.carry(&x.sent, server, x.closeWrite, server) })
	n, upErr := x.carry(server, x.in, server.CloseWrite, server)
	back.Wait()
	x.received += n
	x.broken = upErr != nil || downErr != nil
	return false
}

// carry copies one direction to its end, which it passes on. An error ends both
// directions.
func (x *exchange) carry(to io.Writer, from io.Reader, end func() error, server io.Closer) (n int64, err error) {
	n, err = io.Copy(to, from)
	if err == nil {
		err = end()
	}
	if err != nil {
		reset(x.flow.client)
		_ = server.Close()
	}
	return n, err
}
