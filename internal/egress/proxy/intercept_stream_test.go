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
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/egress/proxy"
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
