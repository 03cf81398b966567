package lab

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// Bounds of what one request may ask for.
const (
	maxBody   = 4 << 30
	maxEvents = 10_000
	maxPause  = time.Minute
)

// newSite is what every web server of the internet shows:
//
//	/               one line that names the host and the address that answered
//	/headers        the request's headers as JSON, httpbin's way
//	/ip             who asked and who answered, as JSON
//	/echo           the request's body
//	/bytes/N        N zero bytes with their length
//	/chunked/N      N lines, each its own chunk
//	/events/N       N server-sent events; ?every=DURATION apart
//	/slow/DURATION  an answer after that time
//	/status/N       an empty answer with that status
//	/redirect?to=U  302 to U
//	/ws             a WebSocket that sends back what it gets
//	/lab.Echo/Echo  a gRPC method, streaming both ways, that does the same
func newSite() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "this is %s at %s\n", r.Host, describe(r).To.Addr())
	})
	mux.HandleFunc("/headers", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, map[string]any{"headers": r.Header})
	})
	mux.HandleFunc("/ip", func(w http.ResponseWriter, r *http.Request) {
		seen := describe(r)
		writeJSON(w, map[string]any{"from": seen.From.Addr(), "to": seen.To.Addr(), "host": r.Host})
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is that anyway
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/redirect", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.FormValue("to"))
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/ws", serveSocket)
	mux.HandleFunc("POST /lab.Echo/Echo", serveCalls)
	mux.HandleFunc("/bytes/{n}", serveBytes)
	mux.HandleFunc("/chunked/{n}", serveChunks)
	mux.HandleFunc("/events/{n}", serveEvents)
	mux.HandleFunc("/slow/{d}", serveSlowly)
	mux.HandleFunc("/status/{n}", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := number(w, r, 999); ok && n >= 100 {
			w.WriteHeader(int(n))
		}
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // fails only when the client is gone
}

// number reads {n} of the path; when it is no number up to limit it answers 400.
func number(w http.ResponseWriter, r *http.Request, limit int64) (int64, bool) {
	n, err := strconv.ParseInt(r.PathValue("n"), 10, 64)
	if err != nil || n < 0 || n > limit {
		http.Error(w, fmt.Sprintf("%q is not a number up to %d", r.PathValue("n"), limit), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

func serveBytes(w http.ResponseWriter, r *http.Request) {
	n, ok := number(w, r, maxBody)
	if !ok {
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	_, _ = io.CopyN(w, zeros{}, n)
}

// zeros reads as zero bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func serveChunks(w http.ResponseWriter, r *http.Request) {
	n, ok := number(w, r, maxEvents)
	if !ok {
		return
	}
	out := http.NewResponseController(w)
	for i := range n {
		fmt.Fprintf(w, "chunk %d\n", i)
		if out.Flush() != nil {
			return
		}
	}
}

func serveEvents(w http.ResponseWriter, r *http.Request) {
	n, ok := number(w, r, maxEvents)
	if !ok {
		return
	}
	every, err := time.ParseDuration(r.FormValue("every"))
	if err != nil || every > maxPause {
		every = 0
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	for i := range n {
		fmt.Fprintf(w, "id: %d\ndata: event %d\n\n", i, i)
		if out.Flush() != nil || !pause(r.Context(), every) {
			return
		}
	}
}

func serveSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // from pages of everywhere
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}

// serveCalls speaks as much gRPC as sending everything back takes: what a
// message is does not matter to it, and the status follows in the trailer.
func serveCalls(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return
	}
	page := make([]byte, 16<<10)
	for {
		n, err := r.Body.Read(page)
		if _, failed := w.Write(page[:n]); failed != nil || out.Flush() != nil {
			return
		}
		if err != nil {
			w.Header().Set("Grpc-Status", "0")
			return
		}
	}
}

func serveSlowly(w http.ResponseWriter, r *http.Request) {
	d, err := time.ParseDuration(r.PathValue("d"))
	if err != nil || d > maxPause {
		http.Error(w, fmt.Sprintf("%q is not a duration up to %s", r.PathValue("d"), maxPause), http.StatusBadRequest)
		return
	}
	if pause(r.Context(), d) {
		fmt.Fprintf(w, "after %s\n", d)
	}
}
