// Command guest stands in for the guest daemon in the tests of the namespaces
// driver. It answers one JSON request per connection on port 7777 of loopback
// by running what the request says.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type request struct {
	Op   string
	Args []string
	N    int
}

type reply struct {
	Out string
	Err string
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "fail":
			fmt.Fprintln(os.Stderr, "the guest's last words")
			os.Exit(3)
		case "sleep":
			time.Sleep(time.Hour)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:7777")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		go serve(c)
	}
}

func serve(c net.Conn) {
	defer c.Close()
	var q request
	if err := json.NewDecoder(c).Decode(&q); err != nil {
		return
	}
	out, err := do(q)
	r := reply{Out: out}
	if err != nil {
		r.Err = err.Error()
	}
	_ = json.NewEncoder(c).Encode(r)
}

var kept [][]byte

func do(q request) (string, error) {
	switch q.Op {
	case "run":
		out, err := exec.Command(q.Args[0], q.Args[1:]...).CombinedOutput()
		return string(out), err
	case "args":
		name, err := os.Hostname()
		return fmt.Sprint(os.Getpid(), name, os.Args[1:], os.Environ()), err
	case "fill": // N MiB into a file
		f, err := os.Create(q.Args[0])
		if err != nil {
			return "", err
		}
		defer f.Close()
		for range q.N {
			if _, err := f.Write(make([]byte, 1<<20)); err != nil {
				return "", err
			}
		}
		return "", nil
	case "eat": // N MiB of memory
		for range q.N {
			block := make([]byte, 1<<20)
			for i := range block {
				block[i] = 1
			}
			kept = append(kept, block)
		}
		return "", nil
	case "fork": // N processes at once
		for i := range q.N {
			cmd := exec.Command("/proc/self/exe", "sleep")
			if err := cmd.Start(); err != nil {
				return fmt.Sprint(i), err
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
		}
		return fmt.Sprint(q.N), nil
	case "exit":
		os.Exit(q.N)
	case "attack":
		return "", attack(q.Args[0])
	}
	return "", fmt.Errorf("unknown operation %q", q.Op)
}

// attack tries what a box must not be able to do; nil means that it could.
func attack(what string) error {
	switch what {
	case "mount":
		return unix.Mount("none", "/tmp", "tmpfs", 0, "")
	case "remount":
		return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "")
	case "unshare":
		return unix.Unshare(unix.CLONE_NEWUSER)
	case "unshare net":
		return unix.Unshare(unix.CLONE_NEWNET)
	case "mknod":
		return unix.Mknod("/tmp/sda", unix.S_IFBLK|0o600, int(unix.Mkdev(8, 0)))
	case "packet socket":
		return socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	case "raw socket":
		return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
	case "vsock":
		return socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)
	case "crypto socket":
		return socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
	case "keyring":
		_, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, true)
		return err
	case "module":
		return unix.InitModule([]byte("x"), "")
	case "clock":
		return unix.Settimeofday(&unix.Timeval{Sec: 1})
	case "reboot":
		return unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF)
	case "bpf":
		_, _, e := unix.Syscall(unix.SYS_BPF, 0, 0, 0)
		return errno(e)
	case "userfaultfd":
		_, _, e := unix.Syscall(unix.SYS_USERFAULTFD, 0, 0, 0)
		return errno(e)
	case "io_uring":
		_, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, 0, 0)
		return errno(e)
	case "open by handle":
		_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), 0)
		return err
	case "link down":
		return linkDown()
	case "change the guest":
		return os.WriteFile("/.moat/new", nil, 0o600)
	case "setns":
		f, err := os.Open("/proc/1/ns/net")
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Setns(int(f.Fd()), 0)
	case "clone with namespaces":
		cmd := exec.Command("/proc/self/exe", "sleep")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER}
		if err := cmd.Start(); err != nil {
			return err
		}
		return cmd.Process.Kill()
	}
	// Everything else is a file to write to.
	f, err := os.OpenFile(what, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString("1")
	return err
}

func socket(family, kind, protocol int) error {
	fd, err := unix.Socket(family, kind, protocol)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func linkDown() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(0)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

func errno(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
