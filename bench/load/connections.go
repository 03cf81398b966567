package load

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"time"
)

// clientHello returns what a TLS client sends first.
func clientHello(name string) ([]byte, error) {
	var sent bytes.Buffer
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		defer client.Close()
		// It fails when nobody answers, which is when all is sent.
		_ = tls.Client(client, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake()
	}()
	header := make([]byte, 5)
	if _, err := io.ReadFull(io.TeeReader(server, &sent), header); err != nil {
		return nil, fmt.Errorf("make a ClientHello: %w", err)
	}
	if _, err := io.CopyN(&sent, server, int64(binary.BigEndian.Uint16(header[3:]))); err != nil {
		return nil, fmt.Errorf("make a ClientHello: %w", err)
	}
	return sent.Bytes(), nil
}

// order is a ClientHello and, in a TLS record behind it, how many bytes Serve
// shall answer.
func (l Load) order(size uint64) ([]byte, error) {
	hello, err := clientHello(l.Name)
	return binary.BigEndian.AppendUint64(append(hello, 23, 3, 3, 0, 8), size), err
}

// dial connects, and ends the connection when the load's patience does.
func (l Load) dial(ctx context.Context) (*net.TCPConn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", l.Target)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	return conn.(*net.TCPConn), conn.SetDeadline(deadline)
}

func (l Load) connections(ctx context.Context, w *worker) error {
	order, err := l.order(1)
	if err != nil {
		return err
	}
	answer := make([]byte, 1)
	for w.begin(); w.more(); {
		began := time.Now()
		conn, err := l.dial(ctx)
		if err != nil {
			return err
		}
		if _, err = conn.Write(order); err == nil {
			_, err = io.ReadFull(conn, answer)
		}
		w.done(time.Since(began), 1)
		if err == nil {
			err = untilEnd(conn)
		}
		if err = errors.Join(err, conn.Close()); err != nil {
			return err
		}
	}
	return nil
}

// untilEnd waits until the server has closed the connection: who closes first
// cannot use the port again for a while.
func untilEnd(conn io.Reader) error {
	n, err := conn.Read(make([]byte, 1))
	if n > 0 || !errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes and %w where the end should be", n, err)
	}
	return nil
}

func (l Load) download(ctx context.Context, w *worker) error {
	order, err := l.order(math.MaxInt64)
	if err != nil {
		return err
	}
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.Write(order); err != nil {
		return err
	}
	page := make([]byte, 256<<10)
	if _, err := io.ReadFull(conn, page); err != nil {
		return err
	}
	for w.begin(); time.Now().Before(w.until); {
		n, err := conn.Read(page)
		if err != nil {
			return err
		}
		w.bytes += int64(n)
	}
	w.count++
	return conn.SetLinger(0)
}
