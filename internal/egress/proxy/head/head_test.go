package head_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
)

// parse reads a head as a connection would give it.
func parse(text string) (*head.Request, error) {
	b, err := head.Read(bufio.NewReaderSize(iotest.OneByteReader(strings.NewReader(text)), 16))
	if err != nil {
		return nil, err
	}
	return head.Parse(b)
}

func TestParse(t *testing.T) {
	for _, x := range []struct {
		text string
		want head.Request
	}{
		{
			"GET /a%2fb?c=%zz&d;e HTTP/1.1\r\nHost: Example.com\r\n\r\n",
			head.Request{Method: "GET", Target: "/a%2fb?c=%zz&d;e", Minor: 1, Authority: head.Authority{Name: "Example.com"}},
		},
		{
			"POST / HTTP/1.1\r\nhost:example.com:80\r\nCONTENT-LENGTH:\t 12 \r\nx-a: 1\r\nX-A:\t2\t\r\nX-Empty:\r\n\r\n",
			head.Request{
				Method: "POST", Target: "/", Minor: 1, Length: 12, Authority: head.Authority{Name: "example.com", Port: 80},
				Header: http.Header{"X-A": {"1", "2"}, "X-Empty": {""}},
			},
		},
		{
			"PUT /x HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: Chunked\r\nTrailer: a, b\r\nExpect: 100-Continue\r\n\r\n",
			head.Request{
				Method: "PUT", Target: "/x", Minor: 1, Length: head.Chunked, Authority: head.Authority{Name: "example.com"},
				Trailers: []string{"A", "B"}, Continue: true,
				Header: http.Header{"Trailer": {"a, b"}, "Expect": {"100-Continue"}},
			},
		},
		{"GET / HTTP/1.0\r\n\r\n", head.Request{Method: "GET", Target: "/"}},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", head.Request{Method: "GET", Target: "/", Minor: 1}},
		{"GET //x HTTP/1.1\r\nHost: a\r\n\r\n", head.Request{Method: "GET", Target: "//x", Minor: 1, Authority: head.Authority{Name: "a"}}},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", head.Request{Method: "OPTIONS", Target: "*", Minor: 1, Authority: head.Authority{Name: "a"}}},
		{
			"GET http://EXAMPLE.com:80?q HTTP/1.1\r\nHost: example.com\r\n\r\n",
			head.Request{Method: "GET", Target: "/?q", Minor: 1, Authority: head.Authority{Name: "EXAMPLE.com", Port: 80}},
		},
		{
			"GET HTTP://example.com HTTP/1.0\r\n\r\n",
			head.Request{Method: "GET", Target: "/", Authority: head.Authority{Name: "example.com"}},
		},
		{
			"GET / HTTP/1.1\r\nHost: 93.184.216.34:8080\r\n\r\n",
			head.Request{Method: "GET", Target: "/", Minor: 1, Authority: head.Authority{Addr: netip.MustParseAddr("93.184.216.34"), Port: 8080}},
		},
		{
			"GET / HTTP/1.1\r\nHost: [2606::1]\r\n\r\n",
			head.Request{Method: "GET", Target: "/", Minor: 1, Authority: head.Authority{Addr: netip.MustParseAddr("2606::1")}},
		},
		{
			"GET /ü HTTP/1.1\r\nHost: bücher.example\r\nX: \xff\r\n\r\n",
			head.Request{Method: "GET", Target: "/ü", Minor: 1, Authority: head.Authority{Name: "bücher.example"}, Header: http.Header{"X": {"\xff"}}},
		},
	} {
		if x.want.Header == nil {
			x.want.Header = http.Header{}
		}
		got, err := parse(x.text)
		if err != nil {
			t.Errorf("%q: %v", x.text, err)
		} else if !reflect.DeepEqual(*got, x.want) {
			t.Errorf("%q:\n got %+v\nwant %+v", x.text, *got, x.want)
		}
	}
}

// Attack 07: what two readers could understand as two different requests is
// refused before anybody is contacted.
func TestAttack07AmbiguousHeads(t *testing.T) {
	const host = "Host: example.com\r\n"
	for what, x := range map[string]struct {
		text   string
		status int
	}{
		"CL.TE":                     {"POST / HTTP/1.1\r\n" + host + "Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"TE.CL":                     {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n", 400},
		"TE.TE":                     {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", 400},
		"TE twice":                  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400},
		"TE list":                   {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501},
		"TE unknown":                {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n", 501},
		"TE empty":                  {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n", 501},
		"TE with vertical tab":      {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \vchunked\r\n\r\n", 400},
		"TE with underscore":        {"POST / HTTP/1.1\r\n" + host + "Transfer_Encoding: chunked\r\n\r\n", 400},
		"TE with 1.0":               {"POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", 400},
		"blank before the colon":    {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n", 400},
		"CL twice":                  {"POST / HTTP/1.1\r\n" + host + "Content-Length: 6\r\nContent-Length: 6\r\n\r\n", 400},
		"CL with underscore":        {"POST / HTTP/1.1\r\n" + host + "content_length: 6\r\n\r\n", 400},
		"CL list":                   {"POST / HTTP/1.1\r\n" + host + "Content-Length: 6, 6\r\n\r\n", 400},
		"CL signed":                 {"POST / HTTP/1.1\r\n" + host + "Content-Length: +6\r\n\r\n", 400},
		"CL negative":               {"POST / HTTP/1.1\r\n" + host + "Content-Length: -6\r\n\r\n", 400},
		"CL hex":                    {"POST / HTTP/1.1\r\n" + host + "Content-Length: 0x6\r\n\r\n", 400},
		"CL empty":                  {"POST / HTTP/1.1\r\n" + host + "Content-Length:\r\n\r\n", 400},
		"CL huge":                   {"POST / HTTP/1.1\r\n" + host + "Content-Length: 9223372036854775808\r\n\r\n", 400},
		"CL with underscores in it": {"POST / HTTP/1.1\r\n" + host + "Content-Length: 1_0\r\n\r\n", 400},
		"two hosts":                 {"GET / HTTP/1.1\r\n" + host + "Host: evil.example\r\n\r\n", 400},
		"the same host twice":       {"GET / HTTP/1.1\r\n" + host + host + "\r\n", 400},
		"no host":                   {"GET / HTTP/1.1\r\n\r\n", 400},
		"obs-fold":                  {"GET / HTTP/1.1\r\n" + host + "X: 1\r\n 2\r\n\r\n", 400},
		"obs-fold with a tab":       {"GET / HTTP/1.1\r\n" + host + "X: 1\r\n\t2\r\n\r\n", 400},
		"fold after the first line": {"GET / HTTP/1.1\r\n Host: example.com\r\n\r\n", 400},
		"bare LF":                   {"GET / HTTP/1.1\n" + host + "\r\n", 400},
		"bare LF in a field":        {"GET / HTTP/1.1\r\n" + host + "X: 1\nY: 2\r\n\r\n", 400},
		"bare LF at the end":        {"GET / HTTP/1.1\r\n" + host + "\n", 400},
		"bare CR":                   {"GET / HTTP/1.1\r\n" + host + "X: 1\rY: 2\r\n\r\n", 400},
		"CR CR LF":                  {"GET / HTTP/1.1\r\r\n" + host + "\r\n", 400},
		"NUL in a field":            {"GET / HTTP/1.1\r\n" + host + "X: 1\x002\r\n\r\n", 400},
		"NUL in the target":         {"GET /\x00 HTTP/1.1\r\n" + host + "\r\n", 400},
		"DEL in a field":            {"GET / HTTP/1.1\r\n" + host + "X: \x7f\r\n\r\n", 400},
		"leading CRLF":              {"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", 400},
		"no colon":                  {"GET / HTTP/1.1\r\n" + host + "X\r\n\r\n", 400},
		"empty field name":          {"GET / HTTP/1.1\r\n" + host + ": x\r\n\r\n", 400},
		"blank in a field name":     {"GET / HTTP/1.1\r\n" + host + "X Y: x\r\n\r\n", 400},
		"high byte in a field name": {"GET / HTTP/1.1\r\n" + host + "X\xa0: x\r\n\r\n", 400},
		"two blanks":                {"GET  / HTTP/1.1\r\n" + host + "\r\n", 400},
		"tab for a blank":           {"GET\t/ HTTP/1.1\r\n" + host + "\r\n", 400},
		"blank in the target":       {"GET / x HTTP/1.1\r\n" + host + "\r\n", 400},
		"fragment":                  {"GET /#x HTTP/1.1\r\n" + host + "\r\n", 400},
		"no target":                 {"GET  HTTP/1.1\r\n" + host + "\r\n", 400},
		"no version":                {"GET /\r\n" + host + "\r\n", 400},
		"lower-case version":        {"GET / http/1.1\r\n" + host + "\r\n", 400},
		"version 1.2":               {"GET / HTTP/1.2\r\n" + host + "\r\n", 505},
		"version 2.0":               {"GET / HTTP/2.0\r\n" + host + "\r\n", 505},
		"version 0.9":               {"GET / HTTP/0.9\r\n" + host + "\r\n", 505},
		"version 1.10":              {"GET / HTTP/1.10\r\n" + host + "\r\n", 400},
		"method that is no token":   {"GE(T / HTTP/1.1\r\n" + host + "\r\n", 400},
		"no method":                 {" / HTTP/1.1\r\n" + host + "\r\n", 400},
		"long method":               {strings.Repeat("M", 33) + " / HTTP/1.1\r\n" + host + "\r\n", 400},
		"target without a slash":    {"GET x HTTP/1.1\r\n" + host + "\r\n", 400},
		"asterisk":                  {"GET * HTTP/1.1\r\n" + host + "\r\n", 400},
		"another expectation":       {"POST / HTTP/1.1\r\n" + host + "Expect: magic\r\n\r\n", 417},
		"two expectations":          {"POST / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nExpect: 100-continue\r\n\r\n", 417},
		"length as a trailer":       {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: Content-Length\r\n\r\n", 400},
		"host as a trailer":         {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: x, host\r\n\r\n", 400},
		"no name of a trailer":      {"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: ,\r\n\r\n", 400},
		"too long":                  {"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", head.MaxSize) + "\r\n\r\n", 431},
		"too many fields":           {"GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", head.MaxSize/6) + "\r\n", 431},
		"endless line":              {strings.Repeat("G", head.MaxSize+1), 431},
	} {
		r, err := parse(x.text)
		var refused *head.Error
		if !errors.As(err, &refused) || r != nil || refused.Status != x.status {
			t.Errorf("%s: %+v, %v; want status %d", what, r, err, x.status)
		}
	}
}

// Attack 05: there is one authority, or none.
func TestAttack05OneAuthority(t *testing.T) {
	for what, x := range map[string]struct {
		text   string
		status int
	}{
		"URL and Host differ":         {"GET http://evil.example/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"Host empty beside an URL":    {"GET http://example.com/ HTTP/1.1\r\nHost:\r\n\r\n", 400},
		"ports differ":                {"GET http://example.com:8080/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"trailing dot in one of them": {"GET http://example.com./ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"name in one, address in one": {"GET http://93.184.216.34/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"user in the URL":             {"GET http://example.com@evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400},
		"backslash in the URL":        {"GET http://evil.example\\.example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"URL without a host":          {"GET http:/// HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"https":                       {"GET https://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"scheme without slashes":      {"GET http:example.com HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"authority alone":             {"GET example.com:80 HTTP/1.1\r\nHost: example.com\r\n\r\n", 400},
		"CONNECT":                     {"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n", 405},
		"CONNECT with a path":         {"CONNECT /x HTTP/1.1\r\nHost: example.com\r\n\r\n", 405},
		"user in Host":                {"GET / HTTP/1.1\r\nHost: example.com@evil.example\r\n\r\n", 400},
		"two hosts in one":            {"GET / HTTP/1.1\r\nHost: example.com, evil.example\r\n\r\n", 400},
		"blank in Host":               {"GET / HTTP/1.1\r\nHost: example.com evil.example\r\n\r\n", 400},
		"path in Host":                {"GET / HTTP/1.1\r\nHost: example.com/x\r\n\r\n", 400},
		"percent in Host":             {"GET / HTTP/1.1\r\nHost: evil.example%2eexample.com\r\n\r\n", 400},
		"empty port":                  {"GET / HTTP/1.1\r\nHost: example.com:\r\n\r\n", 400},
		"port 0":                      {"GET / HTTP/1.1\r\nHost: example.com:0\r\n\r\n", 400},
		"port with a zero in front":   {"GET / HTTP/1.1\r\nHost: example.com:080\r\n\r\n", 400},
		"port too large":              {"GET / HTTP/1.1\r\nHost: example.com:65616\r\n\r\n", 400},
		"two ports":                   {"GET / HTTP/1.1\r\nHost: example.com:80:80\r\n\r\n", 400},
		"only a port":                 {"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400},
		"IPv6 without brackets":       {"GET / HTTP/1.1\r\nHost: 2606::1\r\n\r\n", 400},
		"IPv6 with a zone":            {"GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", 400},
		"IPv4 in brackets":            {"GET / HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", 400},
		"bracket without an end":      {"GET / HTTP/1.1\r\nHost: [2606::1\r\n\r\n", 400},
		"name after a bracket":        {"GET / HTTP/1.1\r\nHost: [2606::1]example.com\r\n\r\n", 400},
	} {
		r, err := parse(x.text)
		var refused *head.Error
		if !errors.As(err, &refused) || r != nil || refused.Status != x.status {
			t.Errorf("%s: %+v, %v; want status %d", what, r, err, x.status)
		}
	}
}

func TestReadEndsWithTheHead(t *testing.T) {
	in := bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHost: a\r\n\r\nbody"))
	b, err := head.Read(in)
	if err != nil || !strings.HasSuffix(string(b), "a\r\n\r\n") {
		t.Fatalf("%q, %v", b, err)
	}
	if rest, _ := io.ReadAll(in); string(rest) != "body" {
		t.Errorf("%q is left", rest)
	}
	var refused *head.Error
	if _, err := head.Read(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nHo"))); !errors.Is(err, io.EOF) || errors.As(err, &refused) {
		t.Errorf("a head that breaks off: %v", err)
	}
}

func TestSniff(t *testing.T) {
	for text, want := range map[string]head.Likeness{
		"": head.Undecided, "G": head.Undecided, "GET": head.Undecided, "PRI": head.Undecided,
		"GET ": head.HTTP, "M-SEARCH * HTTP/1.1": head.HTTP, "get / HTTP/1.1": head.HTTP, "PRIX ": head.HTTP,
		" GET": head.Other, "\r\nGET / ": head.Other, "\x16\x03\x01": head.Other, "SSH-2.0-x\r\n": head.Other,
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": head.Other, strings.Repeat("A", 33): head.Other, "\x00": head.Other, "G\xff": head.Other,
	} {
		if got := head.Sniff([]byte(text)); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// FuzzParse holds the parser to net/http: what we accept, it accepts as well,
// and reads the same request.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"GET /a?b HTTP/1.1\r\nHost: example.com\r\nX: 1\r\n\r\n",
		"POST http://example.com:80/ HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: [2606::1]:80\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n",
		"GET / HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: 1.2.3.4\r\n\r\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := head.Parse(text)
		if err != nil {
			var refused *head.Error
			if !errors.As(err, &refused) || refused.Status/100 < 4 || len(refused.What) > 1000 {
				t.Errorf("error %#v", err)
			}
			return
		}
		theirs, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(text))))
		if err != nil {
			// It checks URLs where we pass on what was sent, and takes no header
			// that is longer than 10 times what we do.
			if !strings.Contains(err.Error(), "invalid URL") && !strings.Contains(err.Error(), "parse ") {
				t.Errorf("%q: net/http says %v", text, err)
			}
			return
		}
		length := theirs.ContentLength
		if r.Method != theirs.Method || r.Minor != theirs.ProtoMinor || r.Length != length {
			t.Errorf("%q: we read %+v, net/http %+v", text, r, theirs)
		}
		if ours := r.Authority.String(); !strings.EqualFold(ours, theirs.Host) && !r.Authority.Addr.IsValid() {
			t.Errorf("%q: we read the host %q, net/http %q", text, ours, theirs.Host)
		}
		for key, values := range r.Header {
			if key != "Trailer" && fmt.Sprint(values) != fmt.Sprint(theirs.Header[key]) {
				t.Errorf("%q: we read %s as %q, net/http as %q", text, key, values, theirs.Header[key])
			}
		}
	})
}

func BenchmarkParse(b *testing.B) {
	text := "GET /simple/requests/ HTTP/1.1\r\nHost: example.com\r\nUser-Agent: fetch/1.0\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nConnection: keep-alive\r\n\r\n"
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	in := bufio.NewReader(strings.NewReader(""))
	for b.Loop() {
		in.Reset(strings.NewReader(text))
		raw, err := head.Read(in)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := head.Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}
