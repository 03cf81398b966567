package process

import (
	"io"
	"slices"
	"sync"

	pb "github.com/moat-sandbox/moat/api/process"
)

// Sizes of the pieces in which output is read.
const (
	pipeChunk     = 32 << 10
	terminalChunk = 16 << 10
)

// output hands a process's events to everyone who listens at the moment.
// Without listeners it drops them; a slow listener holds the others and the
// process back, as a full pipe would.
type output struct {
	mu        sync.Mutex
	listeners []*listener
	end       *pb.ProcessEvent // set when the process has ended
}

// listener receives events until it leaves or has the end event.
type listener struct {
	events chan *pb.ProcessEvent
	gone   chan struct{}
	leave  func() // must be called once
}

// join adds a listener, which gets all events from now on. After the process's
// end there is one: the end event.
func (o *output) join() *listener {
	l := &listener{events: make(chan *pb.ProcessEvent, 1), gone: make(chan struct{})}
	l.leave = func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		close(l.gone)
		o.listeners = slices.DeleteFunc(o.listeners, func(other *listener) bool { return other == l })
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.end != nil {
		l.events <- o.end
		return l
	}
	o.listeners = append(o.listeners, l)
	return l
}

func (o *output) publish(e *pb.ProcessEvent) {
	o.mu.Lock()
	to := slices.Clone(o.listeners)
	if e.GetEnd() != nil {
		o.end = e
	}
	o.mu.Unlock()
	for _, l := range to {
		select {
		case l.events <- e:
		case <-l.gone:
		}
	}
}

func (o *output) ended() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.end != nil
}

// pump publishes what r yields until it ends. Errors are ends too: a terminal
// reports EIO when its last user has gone.
func (o *output) pump(r io.Reader, size int, event func([]byte) *pb.ProcessEvent_DataEvent) {
	buf := make([]byte, size)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			// Listeners keep the event, so it gets its own copy.
			data := event(slices.Clone(buf[:n]))
			o.publish(&pb.ProcessEvent{Event: &pb.ProcessEvent_Data{Data: data}})
		}
		if err != nil {
			return
		}
	}
}

func stdoutEvent(b []byte) *pb.ProcessEvent_DataEvent {
	return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stdout{Stdout: b}}
}

func stderrEvent(b []byte) *pb.ProcessEvent_DataEvent {
	return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Stderr{Stderr: b}}
}

func terminalEvent(b []byte) *pb.ProcessEvent_DataEvent {
	return &pb.ProcessEvent_DataEvent{Output: &pb.ProcessEvent_DataEvent_Pty{Pty: b}}
}
