package load

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
)

// Serve answers orders until the listener is closed: a TLS record of any kind,
// then one with a number, which says how many bytes to answer. Nothing is ever
// encrypted: what is measured is who carries it.
func Serve(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_ = answer(conn) // who asked sees the end
		}()
	}
}

func answer(conn net.Conn) error {
	in := bufio.NewReaderSize(conn, 2<<10)
	header := make([]byte, 5)
	if _, err := io.ReadFull(in, header); err != nil {
		return err
	}
	if _, err := in.Discard(int(binary.BigEndian.Uint16(header[3:]))); err != nil {
		return err
	}
	number := make([]byte, len(header)+8)
	if _, err := io.ReadFull(in, number); err != nil {
		return err
	}
	left := binary.BigEndian.Uint64(number[len(header):])
	for page := make([]byte, min(left, 256<<10)); left > 0; {
		n, err := conn.Write(page[:min(left, uint64(len(page)))])
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	return nil
}

// ServeTLS is a web server that answers /N with N bytes, after it has read
// what it was sent. It notes in seen which value the header had that the last
// request carried.
func ServeTLS(ln net.Listener, cert tls.Certificate, header string, seen func(string)) error {
	page := make([]byte, 256<<10)
	server := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				return
			}
			seen(r.Header.Get(header))
			left, err := strconv.ParseInt(r.URL.Path[1:], 10, 64)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Length", strconv.FormatInt(left, 10))
			for left > 0 {
				n, err := w.Write(page[:min(left, int64(len(page)))])
				if err != nil {
					return
				}
				left -= int64(n)
			}
		}),
	}
	if err := server.ServeTLS(ln, "", ""); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
