package ingress

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/moat-sandbox/moat/internal/secret"
)

// A new token ends what the old one and its links let in, whatever it is doing,
// and nothing else.
func TestRecheck(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{}, 1)
	b := w.servePrivate(func(rw http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/drip":
			drip(rw, r)
		case "/ws":
			echoWebSocket(rw, r)
		case "/wait":
			entered <- struct{}{}
			<-r.Context().Done()
		}
	})
	b.Ports = map[uint16]bool{b.port + 1: true}
	w.boxes.put(b)
	neighbour := w.serve(drip)
	old := b.Token.Reveal()
	w.each(t, func(t *testing.T, c client) {
		get := func(path, token string) *http.Request {
			req := c.request(t, "GET", b.host(), path, nil)
			req.Header.Set("E2b-Traffic-Access-Token", token)
			return req
		}
		streaming := c.do(t, get("/drip", b.Token.Reveal()))
		other := c.get(t, neighbour.host(), "/")
		waiting := make(chan *http.Response, 1)
		go func() {
			resp, err := c.Do(get("/wait", b.Token.Reveal()))
			if err != nil {
				t.Error(err)
				resp = nil
			}
			waiting <- resp
		}()
		<-entered
		var ws *websocket.Conn
		if c.proto == 1 {
			var err error
			ws, _, err = websocket.Dial(context.Background(), c.scheme+"://"+b.host()+"/ws", &websocket.DialOptions{
				HTTPClient: c.Client,
				HTTPHeader: http.Header{"Cookie": {cookieFor(c, b, time.Now().Add(time.Hour))}, "Origin": {c.scheme + "://" + b.host()}},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer ws.CloseNow()
		}
		b.Token, b.LinkKey = secret.New(b.Token.Reveal()+"x"), secret.New(b.LinkKey.Reveal()+"x")
		w.boxes.put(b)
		w.in.Recheck(b.ID)
		within(t, 30*time.Second, "the end", func() {
			if _, err := io.Copy(io.Discard, streaming.Body); isCleanEnd(err) {
				t.Error("a stream ended as if it were complete")
			}
			if resp := <-waiting; resp != nil {
				wantFailure(t, resp, 403, "traffic_token_invalid")
				resp.Body.Close()
			}
			if ws != nil {
				if _, _, err := ws.Read(context.Background()); !isReset(err) {
					t.Errorf("web socket: got %v", err)
				}
			}
		})
		lines := bufio.NewReader(other.Body)
		for range 3 {
			lines.Discard(lines.Buffered())
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatalf("a neighbour's answer broke: %v", err)
			}
		}
		wantFailure(t, c.do(t, get("/drip", old)), 403, "traffic_token_invalid")
		going := c.do(t, get("/drip", b.Token.Reveal()))
		w.in.Recheck(b.ID) // changes nothing now
		if _, err := io.ReadFull(going.Body, make([]byte, 50)); err != nil {
			t.Errorf("what the new token let in broke: %v", err)
		}
		going.Body.Close()
	})
	if strings.Contains(w.log.String(), old) {
		t.Error("a token was logged")
	}
}

// slowLookup changes the token after it was asked for it the first time: as if
// another request had done so just then.
type slowLookup struct {
	*boxes
	after atomic.Pointer[func()]
}

func (l *slowLookup) Sandbox(id string) (Target, bool) {
	t, ok := l.boxes.Sandbox(id)
	if f := l.after.Swap(nil); f != nil {
		(*f)()
	}
	return t, ok
}

// A request that read the old token and enters after Recheck has looked is not
// forgotten.
func TestRecheckMissesNobody(t *testing.T) {
	var slow slowLookup
	w := newWorld(t, func(cfg *Config) {
		slow.boxes = cfg.Sandboxes.(*boxes)
		cfg.Sandboxes = &slow
	})
	b := w.servePrivate(func(http.ResponseWriter, *http.Request) { t.Error("the sandbox was contacted") })
	c := w.client("h1")
	for what, x := range map[string]struct {
		method string
		change func(*box)
		status int
		code   string
	}{
		"new token":                {"OPTIONS", func(b *box) { b.Token = secret.New("new") }, 403, "traffic_token_invalid"},
		"new token, plain request": {"GET", func(b *box) { b.Token = secret.New("new") }, 403, "traffic_token_invalid"},
		"another life":             {"OPTIONS", func(b *box) { b.Done = make(chan struct{}) }, 502, "sandbox_not_found"},
	} {
		w.boxes.put(b)
		changed := *b
		x.change(&changed)
		after := func() {
			w.boxes.put(&changed)
			w.in.Recheck(b.ID)
		}
		slow.after.Store(&after)
		req := c.request(t, x.method, b.host(), "/", nil)
		req.Header.Set("E2b-Traffic-Access-Token", b.Token.Reveal())
		t.Run(what, func(t *testing.T) { wantFailure(t, c.do(t, req), x.status, x.code) })
	}
}
