package proxy_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/policy"
)

func TestWebSocket(t *testing.T) {
	_, b, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer conn.CloseNow()
		for {
			kind, text, err := conn.Read(r.Context())
			if err != nil {
				return
			}
			conn.Write(r.Context(), kind, append([]byte("you said "), text...))
		}
	})
	conn, _, err := websocket.Dial(t.Context(), "ws://example.com/chat?token=x", &websocket.DialOptions{HTTPClient: c})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		conn.Write(t.Context(), websocket.MessageText, []byte("hello"))
		if _, text, err := conn.Read(t.Context()); string(text) != "you said hello" {
			t.Fatalf("%q, %v", text, err)
		}
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Error(err)
	}
	r := b.records(t, 1)[0]
	if r.Status != 101 || r.Path != "/chat" || r.Verdict != policy.Allow || r.BytesUp < 150 || r.BytesDown < 150 {
		t.Errorf("record %+v", r)
	}
	if _, _, err := websocket.Dial(t.Context(), "ws://evil.example/", &websocket.DialOptions{HTTPClient: c}); err == nil || !strings.Contains(err.Error(), "403") {
		t.Errorf("to a name that is not allowed: %v", err)
	}
}

// Attack 30, for an upgraded connection.
func TestWebSocketIsCut(t *testing.T) {
	_, b, c := start(t, func(w http.ResponseWriter, r *http.Request) {
		if conn, err := websocket.Accept(w, r, nil); err == nil {
			conn.Read(r.Context())
		}
	})
	conn, _, err := websocket.Dial(t.Context(), "ws://example.com/", &websocket.DialOptions{HTTPClient: c})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if cut := b.update(t, "other.example"); cut != 1 {
		t.Errorf("%d flows cut, want 1", cut)
	}
	if _, _, err := conn.Read(t.Context()); err == nil || !strings.Contains(err.Error(), "reset") {
		t.Errorf("got %v, want a reset", err)
	}
	if r := b.records(t, 1)[0]; r.Verdict != policy.Deny || r.Status != 101 {
		t.Errorf("record %+v", r)
	}
}
