package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// ping sends one echo request over an unprivileged ICMP socket.
func ping(address string) error {
	to := net.ParseIP(address)
	if to == nil {
		return fmt.Errorf("%q is not an address", address)
	}
	network, listen, request, reply, protocol := "udp4", "0.0.0.0", icmp.Type(ipv4.ICMPTypeEcho), icmp.Type(ipv4.ICMPTypeEchoReply), 1
	if to.To4() == nil {
		network, listen, request, reply, protocol = "udp6", "::", ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	conn, err := icmp.ListenPacket(network, listen)
	if err != nil {
		return fmt.Errorf("open an ICMP socket: %v", err) // says nothing about the network
	}
	defer conn.Close()
	message := icmp.Message{Type: request, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte("prober")}}
	raw, err := message.Marshal(nil)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	if _, err := conn.WriteTo(raw, &net.UDPAddr{IP: to}); err != nil {
		return err
	}
	buf := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		answer, err := icmp.ParseMessage(protocol, buf[:n])
		switch {
		case err != nil:
			return err
		case answer.Type == reply:
			return nil
		case answer.Type == ipv4.ICMPTypeDestinationUnreachable, answer.Type == ipv6.ICMPTypeDestinationUnreachable:
			return fmt.Errorf("%v, code %d: %w", answer.Type, answer.Code, syscall.EHOSTUNREACH)
		case answer.Type == request:
			return errors.New("got our own request back")
		}
	}
}
