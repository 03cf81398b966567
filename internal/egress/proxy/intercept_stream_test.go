package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Bodies of any size go both ways at once, unchanged, with what follows them.
func TestLargeBodies(t *testing.T) {
	const size = 8 << 20
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Trailer", "X-Sum")
			n, _ := io.Copy(w, r.Body)
			w.Header().Set("X-Sum", fmt.Sprintf("%d %s", n, r.Trailer.Get("X-End")))
		})
		b := w.box(t, 1)
		b.change(t, withKey("example.com"))
		sent := make([]byte, size)
		rand.Read(sent)
		r := request(t, "POST", "https://example.com/")
		r.Trailer = http.Header{"X-End": nil, "Authorization": nil}
		r.Body = io.NopCloser(&noticed{Reader: bytes.NewReader(sent), at: func() {
			r.Trailer.Set("X-End", "here")
		}})
		if version == 1 { // a strict reader refuses it as a trailer
			delete(r.Trailer, "Authorization")
		}
		answer, err := b.https(t, version).Do(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || !bytes.Equal(got, sent) || answer.Trailer.Get("X-Sum") != fmt.Sprintf("%d here", size) {
			t.Errorf("HTTP/%d: %d bytes came back, trailer %q, %v", version, len(got), answer.Trailer, err)
		}
		if r := b.records(t, 1)[0]; r.BytesUp < size || r.BytesDown < size {
			t.Errorf("HTTP/%d: record %+v", version, r)
		}
	}
}

// noticed calls at when it has been read.
type noticed struct {
	io.Reader
	at func()
}

func (e *noticed) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		e.at()
	}
	return n, err
}

// What a server sends arrives when it is sent, and the client's going ends the
// request there.
func TestEventsArriveAtOnce(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		next, ended := make(chan string), make(chan struct{})
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
			defer close(ended)
			w.Header().Set("Content-Type", "text/event-stream")
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			for {
				select {
				case event := <-next:
					fmt.Fprintf(w, "data: %s\n", event)
					_ = http.NewResponseController(w).Flush()
				case <-r.Context().Done():
					return
				}
			}
		})
		b := w.box(t, 1)
		b.change(t, withKey("example.com"))
		ctx, cancel := context.WithCancel(t.Context())
		answer, err := b.https(t, version).Do(request(t, "GET", "https://example.com/").WithContext(ctx))
		if err != nil {
			t.Fatal(err)
		}
		in := bufio.NewReader(answer.Body)
		for _, event := range []string{"a", "b", "c"} {
			next <- event
			if line, err := in.ReadString('\n'); line != "data: "+event+"\n" {
				t.Errorf("HTTP/%d: %q, %v", version, line, err)
			}
		}
		cancel()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			t.Errorf("HTTP/%d: the server does not see that the client is gone", version)
		}
		answer.Body.Close()
	}
}

func TestWebSocketInTLS(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		text := []byte(r.Header.Get("Authorization"))
		for err == nil {
			err = conn.Write(r.Context(), websocket.MessageText, text)
			if err == nil {
				_, text, err = conn.Read(r.Context())
			}
		}
	})
	b := w.box(t, 1)
	b.change(t, withKey("example.com"))
	conn, _, err := websocket.Dial(t.Context(), "wss://example.com/", &websocket.DialOptions{HTTPClient: b.https(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	for _, want := range []string{"Bearer " + apiKey, "one", "two"} {
		if _, got, err := conn.Read(t.Context()); string(got) != want {
			t.Fatalf("%q, %v", got, err)
		}
		if err := conn.Write(t.Context(), websocket.MessageText, []byte(map[string]string{"Bearer " + apiKey: "one", "one": "two", "two": "-"}[want])); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	if r := b.records(t, 1)[0]; r.Status != http.StatusSwitchingProtocols || !slices.Equal(r.Injected, []string{"Authorization"}) {
		t.Errorf("record %+v", r)
	}
}

// A body that is held back is asked for by the server over HTTP/1.1. Over HTTP/2
// we ask, when the server is connected, and not for a request that is refused.
func TestExpectContinueInTLS(t *testing.T) {
	for _, version := range []int{1, 2} {
		w := newWorld(t, proxy.Limits{})
		w.secure2(t, "example.com", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/no" {
				w.WriteHeader(http.StatusRequestEntityTooLarge)
				return
			}
			_, _ = io.Copy(w, r.Body)
		})
		b := w.box(t, 1)
		b.change(t, policy.Document{Rules: ordered(
			policy.OrderedRule{Name: "no", Match: policy.Match{Host: "example.com", Path: "/denied"}},
			policy.OrderedRule{Name: "all", Match: policy.Match{Host: "example.com"}, Allow: true},
		)})
		for path, want := range map[string]struct {
			status int
			asked  bool
		}{
			"/yes": {http.StatusOK, true}, "/no": {http.StatusRequestEntityTooLarge, version == 2}, "/denied": {http.StatusForbidden, false},
		} {
			asked := false
			r := request(t, "POST", "https://example.com"+path, "Expect", "100-continue")
			r.Body, r.ContentLength = io.NopCloser(&noticed{Reader: strings.NewReader("body"), at: func() { asked = true }}), 4
			c := b.https(t, version)
			c.Transport.(*http.Transport).ExpectContinueTimeout = time.Minute
			answer, err := c.Do(r)
			if err != nil {
				t.Fatalf("HTTP/%d, %s: %v", version, path, err)
			}
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || answer.StatusCode != want.status || path == "/yes" && string(body) != "body" {
				t.Errorf("HTTP/%d, %s: %s %q, %v", version, path, answer.Status, body, err)
			}
			if asked && !want.asked { // whether it is asked in time elsewhere is a race
				t.Errorf("HTTP/%d, %s: the body was asked for", version, path)
			}
		}
	}
}
