package wire

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// plain are requests that must be read; HOST and END stand for what all have.
func request(text string) []byte {
	text = strings.ReplaceAll(text, "HOST", "Host: 8080-iabc.moat.test\r\n")
	return []byte(text + "\r\n")
}

func TestRequest(t *testing.T) {
	for _, x := range []struct {
		text, method, target string
		length               int64
		last                 bool
	}{
		{"GET / HTTP/1.1\r\nHOST", "GET", "/", 0, false},
		{"HEAD //a/../b%2Fc;d?e=%zz&f?g=/h HTTP/1.1\r\nHOST", "HEAD", "//a/../b%2Fc;d?e=%zz&f?g=/h", 0, false},
		{"POST /a HTTP/1.1\r\nHOSTContent-Length: 5\r\nX-A:b\r\n", "POST", "/a", 5, false},
		{"POST /a HTTP/1.1\r\nHOSTcontent-length:\t5 \t\r\n", "POST", "/a", 5, false},
		{"DELETE /a HTTP/1.1\r\nHOSTConnection: Close\r\n", "DELETE", "/a", 0, true},
		{"GET /a HTTP/1.1\r\nConnection: keep-alive\r\nHOSTKeep-Alive: x\r\nContent-Length: 0\r\n", "GET", "/a", 0, false},
		{"PUT /a HTTP/1.1\r\nHOSTContent-Length: 999999999999999999\r\n", "PUT", "/a", 999999999999999999, false},
		{"PATCH /a HTTP/1.1\r\nHOSTX-Empty:\r\nX-Blank: \t \r\nX-Latin: \xe9\r\n", "PATCH", "/a", 0, false},
	} {
		var r Request
		if head := request(x.text); End(head) != len(head) || !r.Parse(head) {
			t.Errorf("%q is not plain", x.text)
			continue
		}
		if string(r.Method) != x.method || string(r.Target) != x.target || r.Length != x.length || r.Last != x.last || string(r.Host) != "8080-iabc.moat.test" {
			t.Errorf("%q: got %s %s, host %s, length %d, last %v", x.text, r.Method, r.Target, r.Host, r.Length, r.Last)
		}
	}
}

func TestRequestIsNotPlain(t *testing.T) {
	for _, text := range []string{
		"", "GET / HTTP/1.1\r\n", "GET / HTTP/1.0\r\nHOST", "GET / HTTP/1.1 \r\nHOST", "GET  / HTTP/1.1\r\nHOST", " GET / HTTP/1.1\r\nHOST",
		"\r\nGET / HTTP/1.1\r\nHOST", "GET /\tHTTP/1.1\r\nHOST", "get / HTTP/1.1\r\nHOST", "OPTIONS / HTTP/1.1\r\nHOST", "CONNECT / HTTP/1.1\r\nHOST",
		"GET a HTTP/1.1\r\nHOST", "GET http://x/ HTTP/1.1\r\nHOST", "GET * HTTP/1.1\r\nHOST", "GET /a b HTTP/1.1\r\nHOST", "GET /# HTTP/1.1\r\nHOST",
		"GET /% HTTP/1.1\r\nHOST", "GET /%2 HTTP/1.1\r\nHOST", "GET /%zz HTTP/1.1\r\nHOST", "GET /\\ HTTP/1.1\r\nHOST", "GET /\xe9 HTTP/1.1\r\nHOST",
		"GET /\" HTTP/1.1\r\nHOST", "GET / HTTP/1.1\nHOST", "GET / HTTP/1.1\r\nHOSTHOST", "GET / HTTP/1.1\r\nHOSTX-A : b\r\n", "GET / HTTP/1.1\r\nHOST: b\r\n",
		"GET / HTTP/1.1\r\nHOST b: c\r\n", "GET / HTTP/1.1\r\nHOST\tb: c\r\n", "GET / HTTP/1.1\r\n folded: x\r\nHOST", "GET / HTTP/1.1\r\nHOSTX-A\r\n",
		"GET / HTTP/1.1\r\nHOSTX_A: b\r\n", "GET / HTTP/1.1\r\nHOSTX-A: b\rc\r\n", "GET / HTTP/1.1\r\nHOSTX-A: b\nX-B: c\r\n", "GET / HTTP/1.1\r\nHOSTX-A: \x00\r\n",
		"GET / HTTP/1.1\r\nHOSTX-A: \x7f\r\n", "GET / HTTP/1.1\r\nHOSTX\xe9: b\r\n", "GET / HTTP/1.1\r\nHOSTX A: b\r\n",
		"POST / HTTP/1.1\r\nHOSTTransfer-Encoding: chunked\r\n", "POST / HTTP/1.1\r\nHOSTtransfer-encoding: x\r\n", "GET / HTTP/1.1\r\nHOSTUpgrade: websocket\r\n",
		"POST / HTTP/1.1\r\nHOSTContent-Length: 1\r\nContent-Length: 1\r\n", "POST / HTTP/1.1\r\nHOSTContent-Length: 01\r\n", "POST / HTTP/1.1\r\nHOSTContent-Length: +1\r\n",
		"POST / HTTP/1.1\r\nHOSTContent-Length: 1, 1\r\n", "POST / HTTP/1.1\r\nHOSTContent-Length: \r\n", "POST / HTTP/1.1\r\nHOSTContent-Length: 0x1\r\n",
		"POST / HTTP/1.1\r\nHOSTContent-Length: 9999999999999999999\r\n", "GET / HTTP/1.1\r\nHOSTContent-Length: 1\r\n", "DELETE / HTTP/1.1\r\nHOSTContent-Length: 1\r\n",
		"GET / HTTP/1.1\r\nHOSTConnection: close, x\r\n", "GET / HTTP/1.1\r\nHOSTConnection: x\r\n", "GET / HTTP/1.1\r\nHOSTConnection: close\r\nConnection: close\r\n",
		"GET / HTTP/1.1\r\nHOSTTE: trailers\r\n", "GET / HTTP/1.1\r\nHOSTTrailer: x\r\n", "POST / HTTP/1.1\r\nHOSTExpect: 100-continue\r\n",
		"GET / HTTP/1.1\r\nHOSTHTTP2-Settings: x\r\n", "GET / HTTP/1.1\r\nHOSTProxy-Authorization: x\r\n", "GET / HTTP/1.1\r\nHOSTProxy-Connection: x\r\n",
		"GET / HTTP/1.1\r\nHOST" + strings.Repeat("X: y\r\n", maxFields), "GET / HTTP/1.1\r\nHOSTX: " + strings.Repeat("y", MaxHead) + "\r\n",
	} {
		if head := request(text); new(Request).Parse(head) && End(head) == len(head) {
			t.Errorf("%.80q is plain", text)
		}
	}
}

func TestEnd(t *testing.T) {
	for text, want := range map[string]int{"": 0, "a\r\n": 0, "a\r\n\r": 0, "a\r\n\r\n": 5, "a\r\n\r\nb\r\n\r\n": 5, "\r\n\r\n": 4, "a\n\nb": 0} {
		if got := End([]byte(text)); got != want {
			t.Errorf("%q: got %d, want %d", text, got, want)
		}
	}
}

func TestResponse(t *testing.T) {
	for _, x := range []struct {
		text   string
		toHEAD bool
		status int
		length int64
		last   bool
	}{
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, 200, 5, false},
		{"HTTP/1.1 404 \r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false, 404, 0, true},
		{"HTTP/1.1 204 No Content\r\n\r\n", false, 204, 0, false},
		{"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, 304, 0, false},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, 200, 0, false},
		{"HTTP/1.1 200 OK\r\n\r\n", true, 200, 0, false},
	} {
		var r Response
		if !r.Parse([]byte(x.text), x.toHEAD) || r.Status != x.status || r.Length != x.length || r.Last != x.last {
			t.Errorf("%q: got %d, length %d, last %v", x.text, r.Status, r.Length, r.Last)
		}
	}
	for _, text := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 101 x\r\n\r\n", "HTTP/1.1 103 x\r\n\r\n", "HTTP/1.1 600 x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 +20 x\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 2000 x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1  200 x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 200 a\rb\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
		"HTTP/1.1 204 x\r\nContent-Length: 1\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nUpgrade: x\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n\r\n", "\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTrailer: x\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close, x\r\n\r\n",
	} {
		if new(Response).Parse([]byte(text), false) {
			t.Errorf("%q is plain", text)
		}
	}
}

// FuzzRequest: net/http reads every plain request too, and finds the same in
// it. So do both when the fields are written out one by one.
func FuzzRequest(f *testing.F) {
	f.Add([]byte("GET /a?b HTTP/1.1\r\nHost: x\r\nA: b\r\n\r\n"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"))
	for _, fields := range []string{
		"Content-Length: 1\r\nContent-Length: 2\r\n", "Content-Length: 0x1\r\n", "Content-Length : 1\r\n", "Transfer-Encoding:\vchunked\r\n", "A: b\r\n c\r\n",
		"A: b\nC: d\r\n", "A: b\rC: d\r\n", "Host: y\r\n", "Connection: Host\r\n", "Upgrade: h2c\r\nHTTP2-Settings: x\r\n", "Expect: 100-continue\r\n", "Content_Length: 3\r\n",
	} {
		f.Add([]byte("POST /a%2Fb/../c?%zz HTTP/1.1\r\nHost: x\r\n" + fields + "\r\nabc"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		end := End(b)
		var r Request
		if end == 0 || !r.Parse(b[:end]) {
			return
		}
		var again bytes.Buffer
		fmt.Fprintf(&again, "%s %s HTTP/1.1\r\n", r.Method, r.Target)
		for i := range r.Len() {
			again.Write(r.Line(i))
		}
		again.WriteString("\r\n")
		if !bytes.Equal(again.Bytes(), b[:end]) {
			t.Fatalf("%q is written as %q", b[:end], &again)
		}
		want, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%q: net/http: %v", b, err)
		}
		if want.Method != string(r.Method) || want.RequestURI != string(r.Target) || want.Host != string(r.Host) ||
			max(want.ContentLength, 0) != r.Length || len(want.TransferEncoding) != 0 || want.Close != r.Last && r.Last {
			t.Fatalf("%q: net/http reads %s %s, host %s, length %d, %v, close %v", b, want.Method, want.RequestURI, want.Host, want.ContentLength, want.TransferEncoding, want.Close)
		}
		if out := want.URL.EscapedPath(); out != string(r.Path()) {
			t.Fatalf("%q: net/http writes the path as %s", b, out)
		}
		values := make(map[string]int)
		for i := range r.Len() {
			if name := http.CanonicalHeaderKey(string(r.Name(i))); name != "Host" {
				if n := values[name]; n >= len(want.Header[name]) || want.Header[name][n] != string(r.Value(i)) {
					t.Fatalf("%q: net/http has %s: %q", b, name, want.Header[name])
				}
				values[name]++
			}
		}
	})
}

// FuzzResponse is the same for responses.
func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA: b\r\n\r\nabc"), false)
	f.Add([]byte("HTTP/1.1 304 Not Modified\r\nConnection: close\r\n\r\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, toHEAD bool) {
		end := End(b)
		var r Response
		if end == 0 || !r.Parse(b[:end], toHEAD) {
			return
		}
		method := "GET"
		if toHEAD {
			method = "HEAD"
		}
		want, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%q: net/http: %v", b, err)
		}
		body, _ := io.ReadAll(want.Body)
		if want.StatusCode != r.Status || int64(len(body)) != min(r.Length, int64(len(b)-end)) || len(want.TransferEncoding) != 0 || want.Close && !r.Last {
			t.Fatalf("%q: net/http reads %d with %d bytes, close %v", b, want.StatusCode, len(body), want.Close)
		}
	})
}

func BenchmarkRequest(b *testing.B) {
	head := request("GET /path/to/something?with=query HTTP/1.1\r\nHOSTUser-Agent: curl/8.5.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nCookie: a=b; c=d\r\n")
	b.ReportAllocs()
	var r Request
	for b.Loop() {
		if !r.Parse(head[:End(head)]) {
			b.Fatal("not plain")
		}
	}
}
