// Package wire holds what all endpoints of the daemon share on the wire: the
// form of errors, the caller's choice of user, and keepalives.
package wire

import (
	"encoding/json"
	"net/http"
)

// WriteError answers with the body that every plain HTTP error has. The
// message reaches the caller: it must hold no secret.
func WriteError(w http.ResponseWriter, status int, message string) {
	WriteJSON(w, status, struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
}

// WriteJSON answers with v. A failure to send it is the caller's loss only.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":500,"message":"cannot encode the answer"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
