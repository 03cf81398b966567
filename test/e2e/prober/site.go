package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// site is a web server for looking at the sandbox's public URL from inside.
//
//	/        the request as it arrived
//	/echo    the request's body
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
