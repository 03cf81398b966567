package ingress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// transcript is an app that keeps every byte it is sent and answers each
// request that a strict parser finds in them.
type transcript struct{ syncBuffer }

func (s *transcript) serve(conn net.Conn) {
	in := bufio.NewReader(io.TeeReader(conn, s))
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	}
}

// Attack 38: whatever arrives, the app is sent requests with one meaning, or
// nothing. Each case is written to the raw socket; HOST stands for the host.
func TestAttack38Smuggling(t *testing.T) {
	w := newWorld(t)
	const hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
	for _, x := range []struct {
		what, send string
		// want lists what the app may see, request by request; nil means that
		// it sees nothing and the client gets a 4xx or nothing.
		want []string
	}{
		{"plain", "GET /a HTTP/1.1\r\nHost: HOST\r\n\r\n", []string{"GET /a"}},
		{"pipelined", "GET /a HTTP/1.1\r\nHost: HOST\r\n\r\nGET /b HTTP/1.1\r\nHost: HOST\r\n\r\n", []string{"GET /a", "GET /b"}},
		{"CL.TE", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 38\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, []string{"POST /a"}},
		{"TE.CL", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n21\r\n" + hidden + "\r\n0\r\n\r\n", []string{"POST /a"}},
		{"two transfer encodings", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", nil},
		{"unknown transfer encoding", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", nil},
		{"encoding with a vertical tab", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: \vchunked\r\n\r\n0\r\n\r\n", nil},
		{"encoding list", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", nil},
		{"blank before the colon", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding : chunked\r\nContent-Length: 0\r\n\r\n" + hidden, nil},
		{"two lengths", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0\r\nContent-Length: 33\r\n\r\n" + hidden, nil},
		{"length list", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0, 33\r\n\r\n" + hidden, nil},
		{"signed length", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: +33\r\n\r\n" + hidden, nil},
		{"negative length", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: -1\r\n\r\n", nil},
		{"hex length", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 0x21\r\n\r\n" + hidden, nil},
		{"huge length", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 99999999999999999999\r\n\r\n", nil},
		{"bad chunk size", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + hidden, nil},
		{"chunk size with a blank", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0 x\r\n\r\n", nil},
		{"huge chunk", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", nil},
		{"two hosts", "GET /a HTTP/1.1\r\nHost: HOST\r\nHost: HOST\r\n\r\n", nil},
		{"no host", "GET /a HTTP/1.1\r\n\r\n", nil},
		{"host with a blank", "GET /a HTTP/1.1\r\nHost: HOST x\r\n\r\n", nil},
		{"host with a user", "GET /a HTTP/1.1\r\nHost: u@HOST\r\n\r\n", nil},
		{"obs-fold", "GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: 1\r\n 2\r\n\r\n", []string{"GET /a"}},
		{"obs-fold at the start", "GET /a HTTP/1.1\r\n Host: HOST\r\n\r\n", nil},
		{"bare LF", "GET /a HTTP/1.1\nHost: HOST\n\n", []string{"GET /a"}},
		{"bare CR", "GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: 1\rX-B: 2\r\n\r\n", nil},
		{"NUL", "GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: 1\x002\r\n\r\n", nil},
		{"leading CRLF", "\r\nGET /a HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"no colon", "GET /a HTTP/1.1\r\nHost: HOST\r\nX-A\r\n\r\n", nil},
		{"empty name", "GET /a HTTP/1.1\r\nHost: HOST\r\n: x\r\n\r\n", nil},
		{"blank in a name", "GET /a HTTP/1.1\r\nHost: HOST\r\nX A: x\r\n\r\n", nil},
		{"blank in the target", "GET /a /b HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"tab in the target", "GET /a\tb HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"no version", "GET /a\r\nHost: HOST\r\n\r\n", nil},
		{"version 1.2", "GET /a HTTP/1.2\r\nHost: HOST\r\n\r\n", []string{"GET /a"}},
		{"version 2.0", "GET /a HTTP/2.0\r\nHost: HOST\r\n\r\n", nil},
		{"lower-case version", "GET /a http/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"method that is no token", "GE(T /a HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"target without a slash", "GET a HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"whole URL", "GET http://HOST/a?b HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n", []string{"GET /a?b"}},
		{"whole URL elsewhere", "GET http://x.8080-" + someID + ".moat.test/a HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"CONNECT", "CONNECT HOST HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: HOST\r\n\r\n", []string{"OPTIONS *"}},
		{"asterisk of another method", "GET * HTTP/1.1\r\nHost: HOST\r\n\r\n", nil},
		{"1.0 with chunks", "POST /a HTTP/1.0\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + hidden, []string{"POST /a"}},
		{"body on GET", "GET /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 33\r\n\r\n" + hidden, []string{"GET /a"}},
		{"h2c upgrade", "GET /a HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []string{"GET /a"}},
		{"chunks", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: HOST\r\n\r\n", []string{"POST /a", "GET /b"}},
		{"chunk extensions", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3;a=\"\r\n\r\nabc\r\n0\r\n\r\n", nil},
		{"chunk extension of LF", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n21\r\n" + hidden + "\r\n0\r\n\r\n", nil},
		{"chunk ended by LF", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\n0\n\n", nil},
		{"chunk longer than it says", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n", nil},
		{"trailers that frame", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n0\r\nContent-Length: 33\r\n\r\n" + hidden, nil},
		{"trailer with a credential", "POST /a HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: x\r\n\r\n", []string{"POST /a"}},
		{"Connection names the length", "POST /a HTTP/1.1\r\nHost: HOST\r\nConnection: Content-Length\r\nContent-Length: 33\r\n\r\n" + hidden, []string{"POST /a"}},
		{"Connection names the host", "GET /a HTTP/1.1\r\nHost: HOST\r\nConnection: Host\r\n\r\n", []string{"GET /a"}},
		{"after the last one", "GET /a HTTP/1.1\r\nHost: HOST\r\nConnection: close\r\n\r\n" + hidden, []string{"GET /a"}},
		{"1.0 keeps nothing", "GET /a HTTP/1.0\r\nHost: HOST\r\n\r\n" + hidden, []string{"GET /a"}},
		{"unknown expectation", "POST /a HTTP/1.1\r\nHost: HOST\r\nExpect: x\r\nContent-Length: 33\r\n\r\n" + hidden, nil},
		{"websocket and a body", "GET /a HTTP/1.1\r\nHost: HOST\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 33\r\n\r\n" + hidden, []string{"GET /a"}},
		{"length and underscore", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent_Length: 33\r\nContent-Length: 0\r\n\r\n", []string{"POST /a"}},
		{"host and port that lead elsewhere", "GET /a HTTP/1.1\r\nHost: HOST:80@evil\r\n\r\n", nil},
		{"body cut short", "POST /a HTTP/1.1\r\nHost: HOST\r\nContent-Length: 10\r\n\r\n123", nil},
		{"too much header", "GET /a HTTP/1.1\r\nHost: HOST\r\nX-A: " + strings.Repeat("x", 2*DefaultMaxHeader) + "\r\n\r\n", nil},
	} {
		app := new(transcript)
		b := w.serveRaw(app.serve)
		t.Run(x.what, func(t *testing.T) {
			t.Parallel()
			answer := exchangeRaw(t, w.plain, strings.ReplaceAll(x.send, "HOST", b.host()), len(x.want))
			wantRequests(t, app.String(), x.want)
			wantRefused(t, answer, x.want == nil)
		})
		// Behind requests that the faster half has served, and that share their
		// packet with what follows.
		behind := new(transcript)
		c := w.serveRaw(behind.serve)
		t.Run(x.what+", later", func(t *testing.T) {
			t.Parallel()
			const before = "GET /1 HTTP/1.1\r\nHost: HOST\r\n\r\nPOST /2 HTTP/1.1\r\nHost: HOST\r\nContent-Length: 3\r\n\r\nabc"
			answer := exchangeRaw(t, w.plain, strings.ReplaceAll(before+x.send, "HOST", c.host()), 2+len(x.want))
			wantRequests(t, behind.String(), append([]string{"GET /1", "POST /2"}, x.want...))
			const good = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
			rest, ok := strings.CutPrefix(answer, good+good)
			if !ok {
				t.Errorf("client got %.200q", answer)
			}
			wantRefused(t, rest, x.want == nil)
		})
	}
}

func wantRefused(t *testing.T, answer string, want bool) {
	t.Helper()
	var minor, status int
	fmt.Sscanf(answer, "HTTP/1.%d %d", &minor, &status)
	if refused := status == 0 || status/100 == 4 || status == 501 || status == 505; refused != want {
		t.Errorf("client got %.60q", answer)
	}
}

// exchangeRaw writes text and returns what comes back until the connection is
// closed, or silent for a while behind as many answers as are wanted.
func exchangeRaw(t *testing.T, addr, text string, answers int) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	go io.WriteString(conn, text)
	var answer []byte
	for buf := make([]byte, 4096); ; {
		silence := 200 * time.Millisecond
		if bytes.Count(answer, []byte("HTTP/1.")) < answers {
			silence = 30 * time.Second
		}
		conn.SetReadDeadline(time.Now().Add(silence))
		n, err := conn.Read(buf)
		answer = append(answer, buf[:n]...)
		if err != nil {
			return string(answer)
		}
	}
}

// wantRequests parses what the app was sent. Complete requests must be the
// wanted ones; one that breaks off is as good as none.
func wantRequests(t *testing.T, sent string, want []string) {
	t.Helper()
	var got []string
	in := bufio.NewReader(strings.NewReader(sent))
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			break
		}
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			break
		}
		got = append(got, r.Method+" "+r.RequestURI)
		if n := len(r.Header["Content-Length"]) + len(r.TransferEncoding); n > 1 {
			t.Errorf("the app was sent two lengths: %q", sent)
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("app saw %v, want %v, in %q", got, want, sent)
	}
	if strings.Contains(sent, "/hidden HTTP/1.1\r\n") && strings.Contains(fmt.Sprint(got), "/hidden") {
		t.Errorf("what was hidden in a body was taken for a request: %q", sent)
	}
	head, _, _ := strings.Cut(sent, "\r\n\r\n")
	if strings.ContainsAny(strings.ReplaceAll(head, "\r\n", ""), "\r\n\x00") {
		t.Errorf("the app was sent a bare control character: %q", head)
	}
}

// Over HTTP/2 method, path and headers are free text that HTTP/1 would give
// another meaning.
func TestAttack38SmugglingByHTTP2(t *testing.T) {
	w := newWorld(t)
	type fields [][2]string
	for _, x := range []struct {
		what string
		h    fields // changes the defaults, or comes on top
		want []string
	}{
		{"plain", nil, []string{"GET /a"}},
		{"blank in the path", fields{{":path", "/a HTTP/1.1\tx"}}, nil},
		{"blank in the query", fields{{":path", "/a?x HTTP/1.1"}}, nil},
		{"line end in the path", fields{{":path", "/a HTTP/1.1\r\nHost: x\r\n\r\nGET /hidden"}}, nil},
		{"line end in the query", fields{{":path", "/a?\r\nX: y"}}, nil},
		{"blank in the method", fields{{":method", "GET /hidden HTTP/1.1"}}, nil},
		{"line end in the method", fields{{":method", "GET\r\n"}}, nil},
		{"line end in a value", fields{{"x-a", "1\r\nx-b: 2"}}, nil},
		{"bare LF in a value", fields{{"x-a", "1\nx-b: 2"}}, nil},
		{"NUL in a value", fields{{"x-a", "1\x002"}}, nil},
		{"colon in a name", fields{{"x-a: 1", "2"}}, nil},
		{"line end in a name", fields{{"x-a\r\nx-b", "2"}}, nil},
		{"upper case", fields{{"X-A", "2"}}, nil},
		{"transfer encoding", fields{{"transfer-encoding", "chunked"}}, nil},
		{"connection", fields{{"connection", "upgrade"}}, nil},
		{"length without a body", fields{{"content-length", "33"}}, []string{"GET /a"}},
		{"authority with a path", fields{{":authority", "HOST/x"}}, nil},
		{"authority with a user", fields{{":authority", "u@HOST"}}, nil},
		{"authority and host differ", fields{{"host", "elsewhere.example"}}, []string{"GET /a"}},
		{"websocket by CONNECT", fields{{":method", "CONNECT"}, {":protocol", "websocket"}}, nil},
	} {
		app := new(transcript)
		b := w.serveRaw(app.serve)
		t.Run(x.what, func(t *testing.T) {
			status := exchangeH2(t, w.plain, b.host(), x.h)
			got := app.String()
			wantRequests(t, got, x.want)
			if x.want == nil && status != "" && status[0] != '4' {
				t.Errorf("client got %s", status)
			}
			if x.want != nil && !strings.Contains(got, "\r\nHost: "+b.host()+"\r\n") {
				t.Errorf("app was sent %q", got)
			}
		})
	}
}

// exchangeH2 sends one request as raw frames and returns the status, or ""
// when the stream or the connection is refused.
func exchangeH2(t *testing.T, addr, host string, changes [][2]string) (status string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	headers := [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", host}, {":path", "/a"}}
next:
	for _, change := range changes {
		for i := range headers {
			if headers[i][0] == change[0] {
				headers[i] = change
				continue next
			}
		}
		headers = append(headers, change)
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, h := range headers {
		encoder.WriteField(hpack.HeaderField{Name: h[0], Value: strings.ReplaceAll(h[1], "HOST", host)})
	}
	io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return ""
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			return f.PseudoValue("status")
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return ""
		}
	}
}
