package files

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	pb "github.com/moat-sandbox/moat/api/filesystem"
	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/watch"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// maxPolled bounds the watchers made for polling, which nobody but their maker
// ends.
const maxPolled = 256

// polled is a watcher with what its events are to carry.
type polled struct {
	*watch.Watcher
	user    account.User
	entries bool
}

// watchRequest is what both ways to watch have in common.
type watchRequest interface {
	GetPath() string
	GetRecursive() bool
	GetIncludeEntry() bool
	GetAllowNetworkMounts() bool
}

// open starts to watch for a caller. Errors are ready to be returned.
func (s *Service) open(ctx context.Context, req watchRequest) (*polled, error) {
	caller, err := wire.From(ctx, s.sessions)
	if err != nil {
		return nil, err
	}
	w, err := watch.New(watch.Config{
		Dir:           caller.Settings.Path(caller.User, req.GetPath()),
		Recursive:     req.GetRecursive(),
		User:          caller.User,
		NetworkMounts: req.GetAllowNetworkMounts(),
	})
	if errors.Is(err, watch.ErrNetworkMount) {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	if err != nil {
		return nil, wire.FileError(err)
	}
	return &polled{Watcher: w, user: caller.User, entries: req.GetIncludeEntry()}, nil
}

// take returns what has happened, in the form clients get it.
func (p *polled) take() ([]*pb.FilesystemEvent, error) {
	happened, err := p.Take()
	if errors.Is(err, watch.ErrOverflow) {
		return nil, connect.NewError(connect.CodeResourceExhausted, err)
	}
	if err != nil {
		return nil, wire.FileError(err)
	}
	events := make([]*pb.FilesystemEvent, 0, len(happened))
	for _, e := range happened {
		events = append(events, &pb.FilesystemEvent{Name: e.Name, Type: eventTypes[e.Kind]})
	}
	if p.entries && len(events) > 0 {
		if err := p.addEntries(happened, events); err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
	}
	return events, nil
}

// addEntries describes what the events are about where it is still there.
func (p *polled) addEntries(happened []watch.Event, events []*pb.FilesystemEvent) error {
	book, err := account.Open()
	if err != nil {
		return err
	}
	return p.user.Do(func() error {
		for i, e := range happened {
			if e.Kind == watch.Rename || e.Kind == watch.Remove {
				continue
			}
			if entry, err := describe(e.Path, book); err == nil {
				events[i].Entry = entry
			}
		}
		return nil
	})
}

var eventTypes = map[watch.Kind]pb.EventType{
	watch.Create: pb.EventType_EVENT_TYPE_CREATE,
	watch.Rename: pb.EventType_EVENT_TYPE_RENAME,
	watch.Chmod:  pb.EventType_EVENT_TYPE_CHMOD,
	watch.Write:  pb.EventType_EVENT_TYPE_WRITE,
	watch.Remove: pb.EventType_EVENT_TYPE_REMOVE,
}

// WatchDir implements pb.FilesystemHandler.
func (s *Service) WatchDir(ctx context.Context, req *pb.WatchDirRequest, stream *connect.ServerStream[pb.WatchDirResponse]) error {
	every, err := wire.Keepalive(ctx)
	if err != nil {
		return err
	}
	p, err := s.open(ctx, req)
	if err != nil {
		return err
	}
	defer p.Close()
	start := &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}
	if err := stream.Send(&pb.WatchDirResponse{Event: start}); err != nil {
		return err
	}
	silence := time.NewTimer(every)
	defer silence.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.Ready():
			if err := p.forward(stream); err != nil {
				return err
			}
		case <-silence.C:
			alive := &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}
			if err := stream.Send(&pb.WatchDirResponse{Event: alive}); err != nil {
				return err
			}
		}
		silence.Reset(every)
	}
}

// forward sends what has happened.
func (p *polled) forward(stream *connect.ServerStream[pb.WatchDirResponse]) error {
	events, err := p.take()
	if err != nil {
		return err
	}
	for _, e := range events {
		if err := stream.Send(&pb.WatchDirResponse{Event: &pb.WatchDirResponse_Filesystem{Filesystem: e}}); err != nil {
			return err
		}
	}
	return nil
}

// CreateWatcher implements pb.FilesystemHandler.
func (s *Service) CreateWatcher(ctx context.Context, req *pb.CreateWatcherRequest) (*pb.CreateWatcherResponse, error) {
	p, err := s.open(ctx, req)
	if err != nil {
		return nil, err
	}
	id := "w" + rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.watchers) >= maxPolled {
		full := fmt.Errorf("there are %d watchers already; remove some", len(s.watchers))
		return nil, connect.NewError(connect.CodeResourceExhausted, errors.Join(full, p.Close()))
	}
	s.watchers[id] = p
	return &pb.CreateWatcherResponse{WatcherId: id}, nil
}

// GetWatcherEvents implements pb.FilesystemHandler.
func (s *Service) GetWatcherEvents(_ context.Context, req *pb.GetWatcherEventsRequest) (*pb.GetWatcherEventsResponse, error) {
	s.mu.Lock()
	p := s.watchers[req.GetWatcherId()]
	s.mu.Unlock()
	if p == nil {
		return nil, unknownWatcher(req.GetWatcherId())
	}
	events, err := p.take()
	if err != nil {
		return nil, err
	}
	return &pb.GetWatcherEventsResponse{Events: events}, nil
}

// RemoveWatcher implements pb.FilesystemHandler.
func (s *Service) RemoveWatcher(_ context.Context, req *pb.RemoveWatcherRequest) (*pb.RemoveWatcherResponse, error) {
	s.mu.Lock()
	p := s.watchers[req.GetWatcherId()]
	delete(s.watchers, req.GetWatcherId())
	s.mu.Unlock()
	if p == nil {
		return nil, unknownWatcher(req.GetWatcherId())
	}
	if err := p.Close(); err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return &pb.RemoveWatcherResponse{}, nil
}

func unknownWatcher(id string) error {
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("watcher with id %s not found", id))
}

// Close ends the watchers that callers left behind.
func (s *Service) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for id, p := range s.watchers {
		err = errors.Join(err, p.Close())
		delete(s.watchers, id)
	}
	return err
}
