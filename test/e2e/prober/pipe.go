package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// What pipe exits with when its connection was reset, so that whoever speaks
// through it can tell that from a regular end.
const exitReset = 4

// pipe joins standard input and output to a connection of the sandbox's. It
// writes a line first: "connected", or what result says about the failure.
// Datagrams are preceded by their length in two bytes, in both directions.
func pipe(target string) error {
	proto, address, ok := strings.Cut(target, ":")
	if !ok {
		return fmt.Errorf("%q is not of the form PROTOCOL:ADDRESS", target)
	}
	conn, err := net.DialTimeout(proto, address, silence)
	if err != nil {
		fmt.Println(result(err))
		return nil
	}
	fmt.Println("connected")
	read, write := copyStream, copyStream
	if proto == "udp" {
		read, write = copyPackets, copyFrames
	}
	go func() {
		// The other direction ends the program.
		if write(conn, os.Stdin) == nil && proto == "tcp" {
			_ = conn.(*net.TCPConn).CloseWrite()
		}
	}()
	if err := read(os.Stdout, conn); errors.Is(err, syscall.ECONNRESET) {
		os.Exit(exitReset)
	} else if err != nil {
		return err
	}
	return nil
}

func copyStream(to io.Writer, from io.Reader) error {
	_, err := io.Copy(to, from)
	return err
}

// copyPackets turns datagrams into frames.
func copyPackets(to io.Writer, from io.Reader) error {
	buf := make([]byte, 2+65535)
	for {
		n, err := from.Read(buf[2:])
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint16(buf, uint16(n))
		if _, err := to.Write(buf[:2+n]); err != nil {
			return err
		}
	}
}

// copyFrames turns frames into datagrams.
func copyFrames(to io.Writer, from io.Reader) error {
	buf := make([]byte, 65535)
	for {
		if _, err := io.ReadFull(from, buf[:2]); err != nil {
			return err
		}
		n := binary.BigEndian.Uint16(buf)
		if _, err := io.ReadFull(from, buf[:n]); err != nil {
			return err
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return err
		}
	}
}
