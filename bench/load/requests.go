package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// client is a TLS connection on which one request follows the other.
type client struct {
	*tls.Conn
	in   *bufio.Reader
	text []byte
	body int64
}

// connect does the handshake. The certificate is of no concern here: whose it
// is the tests of interception ask.
func (l Load) connect(ctx context.Context) (*client, error) {
	conn, err := l.dial(ctx)
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, &tls.Config{ServerName: l.Name, InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}})
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	text := fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\nAccept: */*\r\n\r\n", l.Bytes, l.Name)
	if l.Body > 0 {
		text = fmt.Sprintf("POST /%d HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n", l.Bytes, l.Name, l.Body)
	}
	return &client{Conn: secure, in: bufio.NewReaderSize(secure, 64<<10), text: []byte(text), body: l.Body}, nil
}

// ask sends a request and reads its answer, and returns when that began.
func (c *client) ask(w *worker) error {
	began := time.Now()
	if _, err := c.Write(c.text); err != nil {
		return err
	}
	if c.body > 0 {
		if _, err := io.Copy(c, io.LimitReader(zeros{}, c.body)); err != nil {
			return err
		}
	}
	answer, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	waited := time.Since(began)
	n, err := io.Copy(io.Discard, answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s", answer.Status)
	}
	w.done(waited, n+c.body)
	return err
}

// zeros reads as zero bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (l Load) requests(ctx context.Context, w *worker) error {
	c, err := l.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.ask(new(worker)); err != nil { // from here on the connection is warm
		return err
	}
	for w.begin(); w.more(); {
		if err := c.ask(w); err != nil {
			return err
		}
	}
	return nil
}

func (l Load) handshakes(ctx context.Context, w *worker) error {
	for w.begin(); w.more(); {
		own := l
		own.Name = named(l.Name, w.number<<20|w.turns)
		began := time.Now()
		c, err := own.connect(ctx)
		if err != nil {
			return err
		}
		shaken := time.Since(began)
		err = c.ask(new(worker))
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
		w.done(shaken, 0)
	}
	return nil
}

func (l Load) hold(ctx context.Context) (o Outcome, err error) {
	began := time.Now()
	for range l.Count {
		c, err := l.connect(ctx)
		if err == nil {
			defer c.Close()
			err = c.ask(new(worker))
		}
		if err != nil {
			return o, fmt.Errorf("hold connection %d to %s: %w", o.Count, l.Target, err)
		}
		o.Count++
	}
	o.Took = time.Since(began)
	if _, err := os.Stdout.WriteString(Ready); err != nil {
		return o, err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return o, err
}
