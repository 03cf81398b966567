package load

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
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
