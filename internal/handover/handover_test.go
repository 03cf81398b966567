package handover_test

import (
	"errors"
	"net"
	"testing"

	"github.com/moat-sandbox/moat/internal/handover"
)

func TestGive(t *testing.T) {
	l := handover.New()
	given, other := net.Pipe()
	defer other.Close()
	taken := make(chan bool)
	go func() { taken <- l.Give(given) }()
	if got, err := l.Accept(); got != given || err != nil {
		t.Errorf("accepted %v, %v", got, err)
	}
	if !<-taken {
		t.Error("the giver was told that nobody took it")
	}
}

// Whoever waits on either side of a listener is let go when it closes.
func TestClose(t *testing.T) {
	l := handover.New()
	accepted := make(chan error)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	conn, other := net.Pipe()
	defer conn.Close()
	defer other.Close()
	if l.Give(conn) {
		t.Error("a closed listener took a connection")
	}
}
