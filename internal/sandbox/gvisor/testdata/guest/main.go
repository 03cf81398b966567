// Command guest stands in for the guest daemon in the tests of the gVisor
// driver. It answers one JSON request per TCP connection on port 7777.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

type request struct {
	Op   string
	Args []string
	Path string
	MB   int
	N    int
}

type reply struct {
	Out string
	N   int
	Err string
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "sleep" {
		time.Sleep(time.Hour)
		return
	}
	if len(os.Args) > 1 && os.Args[1] == "fail" {
		fmt.Fprintln(os.Stderr, "the guest's last words")
		os.Exit(3)
	}
	l, err := net.Listen("tcp", ":7777")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go serve(c)
	}
}

func serve(c net.Conn) {
	defer c.Close()
	var req request
	if err := json.NewDecoder(c).Decode(&req); err != nil {
		return
	}
	out, n, err := do(req)
	r := reply{Out: out, N: n}
	if err != nil {
		r.Err = err.Error()
	}
	_ = json.NewEncoder(c).Encode(r)
}

var kept [][]byte

func do(req request) (string, int, error) {
	switch req.Op {
	case "ping":
		return "pong", 0, nil
	case "hostname":
		name, err := os.Hostname()
		return name, 0, err
	case "args":
		return fmt.Sprint(os.Args[1:], os.Environ()), os.Getpid(), nil
	case "read":
		data, err := os.ReadFile(req.Path)
		return string(data), len(data), err
	case "run":
		cmd := exec.Command(req.Args[0], req.Args[1:]...)
		if req.N != 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(req.N), Gid: uint32(req.N)}}
		}
		out, err := cmd.CombinedOutput()
		return string(out), 0, err
	case "fill":
		return fill(req.Path, req.MB)
	case "socket":
		fd, err := syscall.Socket(req.N, syscall.SOCK_RAW, 0xff)
		if err == nil {
			syscall.Close(fd)
		}
		return "", 0, err
	case "send":
		return send(req.Path, req.MB)
	case "fork":
		return fork(req.N)
	case "eat":
		for i := range req.MB {
			b := make([]byte, 1<<20)
			for j := 0; j < len(b); j += 4096 {
				b[j] = byte(i + 1)
			}
			kept = append(kept, b)
		}
		return "", len(kept), nil
	case "spin":
		var threads sync.WaitGroup
		for range req.MB {
			threads.Go(func() {
				for end := time.Now().Add(time.Duration(req.N) * time.Millisecond); time.Now().Before(end); {
				}
			})
		}
		threads.Wait()
		return "", 0, nil
	case "list":
		entries, err := os.ReadDir(req.Path)
		var names string
		for _, e := range entries {
			names += e.Name() + " "
		}
		return names, len(entries), err
	case "exit":
		os.Exit(req.N)
	}
	return "", 0, errors.New("unknown operation " + req.Op)
}

// fill writes up to mb MiB to a file and returns how many were written.
func fill(path string, mb int) (string, int, error) {
	f, err := os.Create(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for i := range mb {
		if n, err := f.Write(block); err != nil {
			return "", i, fmt.Errorf("%w after %d", err, n)
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return "", mb, err
}

// send sends mb MiB to an address and returns what is answered.
func send(addr string, mb int) (string, int, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return "", 0, err
	}
	defer c.Close()
	block := make([]byte, 1<<20)
	for range mb {
		if _, err := c.Write(block); err != nil {
			return "", 0, err
		}
	}
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return "", 0, err
	}
	answer, err := io.ReadAll(c)
	return string(answer), 0, err
}

// fork starts up to n processes that sleep, and returns how many it could.
func fork(n int) (string, int, error) {
	for i := range n {
		cmd := exec.Command("/proc/self/exe", "sleep")
		if err := cmd.Start(); err != nil {
			return "", i, err
		}
	}
	return "", n, nil
}
