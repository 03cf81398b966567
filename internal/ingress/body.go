package ingress

import (
	"io"
	"net/http"
	"sync/atomic"
	"time"
)

const (
	// After an early answer, what the client still sends is swallowed until it
	// pauses for lingerPause, or for lingerTime altogether.
	lingerPause = 250 * time.Millisecond
	lingerTime  = 5 * time.Second
)

// clientBody is a request's body that remembers how reading it ended: a
// client's fault must not be blamed on the sandbox.
type clientBody struct {
	io.ReadCloser
	meter    *meter
	ended    func() // called at the end, before whoever reads learns of it
	complete atomic.Bool
	failed   atomic.Bool
}

// Read implements io.Reader.
func (b *clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.meter.toApp(n)
	switch err {
	case nil:
	case io.EOF:
		b.ended()
		b.complete.Store(true)
	default:
		b.failed.Store(true)
	}
	return n, err
}

// linger swallows what an HTTP/1 client still sends after the app has answered
// without waiting for all of it. To close on unread data resets the connection,
// and the client could lose the answer over that.
func (x *exchange) linger(r *http.Request) {
	if r.ProtoMajor != 1 || r.ContentLength == 0 || x.body.complete.Load() || x.answer.upgraded() {
		return
	}
	control := http.NewResponseController(x.answer.ResponseWriter)
	if control.Flush() != nil {
		return // the client has gone
	}
	buf := x.in.buffers.Get()
	defer x.in.buffers.Put(buf)
	for end := time.Now().Add(lingerTime); time.Now().Before(end); {
		if control.SetReadDeadline(time.Now().Add(lingerPause)) != nil {
			return // the connection has failed already
		}
		if _, err := r.Body.Read(buf); err != nil {
			break
		}
	}
	// The next request on this connection has deadlines of its own.
	_ = control.SetReadDeadline(time.Time{})
}
