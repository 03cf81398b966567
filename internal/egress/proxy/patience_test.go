package proxy

import (
	"io"
	"log/slog"
	"testing"
)

// Answers and bodies may take any time: models think for long. Nothing but
// connections on which nothing is under way is ended by a clock of net/http's.
func TestRequestsAreNotTimed(t *testing.T) {
	server, transport := newHTTP2(slog.New(slog.NewTextHandler(io.Discard, nil))), newTransport()
	if server.ReadTimeout != 0 || server.WriteTimeout != 0 || server.HTTP2.WriteByteTimeout != 0 || server.HTTP2.SendPingTimeout != 0 {
		t.Errorf("the server's limits are %+v, %+v", server, server.HTTP2)
	}
	if transport.ResponseHeaderTimeout != 0 || transport.TLSHandshakeTimeout != 0 {
		t.Errorf("the transport's limits are %v and %v", transport.ResponseHeaderTimeout, transport.TLSHandshakeTimeout)
	}
}
