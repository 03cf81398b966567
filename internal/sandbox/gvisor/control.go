package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A sentry is told what to do over a Unix socket: one request in JSON with
// files beside its first byte, then one answer. gVisor has a client, but its
// sockets would be inherited by other boxes, it takes files from the sentry,
// and every box that is waited for would hold a thread.

// maxAnswer bounds what is read of an answer, in bytes: a sentry may be in the
// hands of what runs inside.
const maxAnswer = 64 << 10

// control is a connection to a sentry. Calls must not overlap.
type control struct{ conn *net.UnixConn }

// dialControl connects to the socket at path. The address of a socket holds
// 107 bytes, so it goes by way of a short name.
func dialControl(path string) (*control, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	defer unix.Close(fd)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d", fd), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to the sentry: %w", err)
	}
	return &control{conn}, nil
}

// bindControl makes the socket at path, on which the sentry will listen.
func bindControl(path string) (*os.File, error) {
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open control socket's directory: %w", err)
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("create control socket: %w", err)
	}
	name := fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind control socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "control socket"), nil
}

func (c *control) close() { c.conn.Close() }

// call makes one call, with files that the sentry gets copies of. Result may be
// nil. When ctx is done the connection is of no use any more.
func (c *control) call(ctx context.Context, method string, arg any, files []*os.File, result any) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	err := c.exchange(method, arg, files, result)
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("call %s of the sentry: %w", method, err)
	}
	return nil
}

func (c *control) exchange(method string, arg any, files []*os.File, result any) error {
	request, err := json.Marshal(struct {
		Method string `json:"method"`
		Arg    any    `json:"arg"`
	}{method, arg})
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := c.send(request, files); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	answer := struct {
		Success bool   `json:"success"`
		Err     string `json:"err"`
		Result  any    `json:"result"`
	}{Result: result}
	if err := json.NewDecoder(io.LimitReader(c.conn, maxAnswer)).Decode(&answer); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if !answer.Success {
		return errors.New(answer.Err)
	}
	return nil
}

// send writes a request; the files go with the first part of it.
func (c *control) send(request []byte, files []*os.File) error {
	var rights []byte
	if len(files) > 0 {
		var fds []int
		for _, f := range files {
			fds = append(fds, int(f.Fd()))
		}
		rights = unix.UnixRights(fds...)
	}
	n, _, err := c.conn.WriteMsgUnix(request, rights, nil)
	if err != nil {
		return err
	}
	_, err = c.conn.Write(request[n:])
	return err
}
