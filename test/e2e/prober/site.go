package main

import (
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

// site is a web server for looking at the sandbox's public URL from inside.
//
//	/        the request as it arrived
//	/echo    the request's body
//	/sum     how many bytes the body had, and their sum
//	/zeros   as many bytes of zero as ?n says
//	/events  one event at once, the next when the client has asked for /next
//	/ws      a WebSocket that sends back what it gets
func site() http.Handler {
	mux := http.NewServeMux()
	next := make(chan struct{}, 1)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s\n", r.Method, r.Host, r.URL.RequestURI())
		_ = r.Header.Write(w) // the client may be gone
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is that anyway
		_, _ = io.Copy(w, r.Body)
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		sum := crc32.NewIEEE()
		n, err := io.Copy(sum, r.Body)
		fmt.Fprint(w, n, sum.Sum32(), err)
	})
	mux.HandleFunc("/zeros", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64) // else none
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("/next", func(http.ResponseWriter, *http.Request) {
		next <- struct{}{}
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		out := http.NewResponseController(w)
		for _, event := range []string{"one", "two"} {
			fmt.Fprintf(w, "data: %s\n\n", event)
			if out.Flush() != nil {
				return
			}
			select {
			case <-next:
			case <-r.Context().Done():
				return
			case <-time.After(time.Minute):
				return
			}
		}
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
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
	})
	return mux
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
