// Command prober runs inside a sandbox and says what its network does, seen
// from there.
//
//	prober probe tcp:1.1.1.1:7 udp:[2606::1]:7 icmp:8.8.8.8 ...
//	prober addrs
//	prober serve PORT
//	prober hold ADDRESS...
//	prober pipe tcp:1.1.1.1:443
//	prober grpc https://example.com
//	prober websocket https://example.com/ws
//
// probe and hold write one JSON object per line: an Outcome.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// silence is how long a probe waits before it calls a target silent.
const silence = 2 * time.Second

// Outcome is what came of one probe.
type Outcome struct {
	Probe string `json:"probe"`
	// Result is "answered", "refused" (a reset, or a port without a listener),
	// "unreachable" (some ICMP error), "silent", or "failed" with a Detail.
	Result string `json:"result"`
	Millis int64  `json:"millis"`
	Detail string `json:"detail,omitempty"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "prober:", err)
		os.Exit(2)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("want probe, addrs, serve, hold, pipe, grpc or websocket")
	}
	switch args[0] {
	case "probe":
		return each(args[1:], probe)
	case "hold":
		return each(args[1:], hold)
	case "addrs":
		return addrs()
	case "serve":
		if len(args) != 2 {
			return errors.New("serve wants one port")
		}
		return http.ListenAndServe(":"+args[1], site())
	case "pipe":
		if len(args) != 2 {
			return errors.New("pipe wants one target")
		}
		return pipe(args[1])
	case "grpc", "websocket":
		if len(args) != 2 {
			return fmt.Errorf("%s wants one URL", args[0])
		}
		return talk(args[0], args[1])
	default:
		return fmt.Errorf("%q is no command of mine", args[0])
	}
}

// each runs fn for all targets at once and writes the outcomes in order.
func each(targets []string, fn func(string) (string, error)) error {
	outcomes := make([]Outcome, len(targets))
	var running sync.WaitGroup
	for i, target := range targets {
		running.Go(func() {
			began := time.Now()
			detail, err := fn(target)
			outcomes[i] = Outcome{Probe: target, Result: result(err), Millis: time.Since(began).Milliseconds(), Detail: detail}
			if err != nil {
				outcomes[i].Detail = err.Error()
			}
		})
	}
	running.Wait()
	out := json.NewEncoder(os.Stdout)
	for _, o := range outcomes {
		if err := out.Encode(o); err != nil {
			return err
		}
	}
	return nil
}

// result puts an error into one of a few words.
func result(err error) string {
	var timeout net.Error
	switch {
	case err == nil:
		return "answered"
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET):
		return "refused"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EACCES):
		return "unreachable"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "silent"
	default:
		return "failed"
	}
}

// probe sends a little to the target and waits for an answer.
func probe(target string) (string, error) {
	proto, address, ok := strings.Cut(target, ":")
	if !ok {
		return "", fmt.Errorf("%q is not of the form PROTOCOL:ADDRESS", target)
	}
	if proto == "icmp" {
		return "", ping(address)
	}
	conn, err := net.DialTimeout(proto, address, silence)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return "", echo(conn)
}

// echo expects back what it sends.
func echo(conn net.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("ping")); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 64))
	return err
}

// hold keeps a TCP connection to an echo server busy until it breaks, or until
// a file called "stop" appears in the working directory.
func hold(address string) (string, error) {
	conn, err := net.DialTimeout("tcp", address, silence)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	for n := 0; ; n++ {
		if err := echo(conn); err != nil {
			return "", err
		}
		if n == 0 {
			if err := os.WriteFile("held-"+address, nil, 0o644); err != nil {
				return "", err
			}
		}
		if _, err := os.Stat("stop"); err == nil {
			return fmt.Sprintf("%d echoes", n+1), nil
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// addrs prints the sandbox's own addresses that others could dial.
func addrs() error {
	found, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range found {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			fmt.Println(ip.IP)
		}
	}
	return nil
}
