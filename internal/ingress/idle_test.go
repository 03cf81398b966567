package ingress

import (
	"bufio"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
)

// appAddress makes a process of the tests an app of its own, so that both ends
// of many connections need not fit into one process.
const appAddress = "INGRESS_TEST_APP"

func TestMain(m *testing.M) {
	if addr := os.Getenv(appAddress); addr != "" {
		holdSockets(addr)
		return
	}
	log.SetOutput(io.Discard) // net/http tells of what apps say unasked, to nobody but the standard logger
	os.Exit(m.Run())
}

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

// holdSockets is an app that grants every upgrade and then sends back what it
// gets. It ends with its standard input.
func holdSockets(addr string) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ready")
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReaderSize(conn, 512)); err != nil {
					return
				}
				io.WriteString(conn, switching)
				for buf := make([]byte, 16); ; {
					n, err := conn.Read(buf)
					if err != nil {
						return
					}
					conn.Write(buf[:n])
				}
			}()
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}

// startApp runs holdSockets in a process of its own.
func (w *world) startApp() *box {
	w.t.Helper()
	b := newBox(7000)
	app := exec.Command(os.Args[0])
	app.Env = append(os.Environ(), appAddress+"="+netip.AddrPortFrom(b.Addr, b.port).String())
	in, err := app.StdinPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	out, err := app.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := app.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		in.Close()
		app.Wait()
	})
	if said, err := bufio.NewReader(out).ReadString('\n'); err != nil || said != "ready\n" {
		w.t.Fatalf("the app says %q, %v", said, err)
	}
	w.boxes.put(b)
	return b
}

// inUse is the memory that is in use, heap and stacks.
func inUse() uint64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools let go
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// 5,000 WebSockets on which nothing happens cost little, and all still work.
func TestManyIdleWebSockets(t *testing.T) {
	const sockets = 5000
	w := newWorld(t)
	b := w.startApp()
	before := inUse()
	conns := make([]net.Conn, sockets)
	var opening sync.WaitGroup
	slots := make(chan struct{}, 64)
	for i := range conns {
		opening.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			var err error
			if conns[i], err = net.Dial("tcp", w.plain); err != nil {
				t.Error(err)
				return
			}
			fmt.Fprintf(conns[i], "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b.host())
			wantEcho(t, conns[i], http.StatusSwitchingProtocols)
		})
	}
	opening.Wait()
	t.Cleanup(func() {
		for _, conn := range conns {
			if conn != nil {
				conn.Close()
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	each := (inUse() - before) / sockets
	t.Logf("%d bytes for each of %d sockets, the client's side too", each, sockets)
	if each > 48<<10 {
		t.Errorf("each socket costs %d bytes", each)
	}
	if open := w.in.Metrics().Sandboxes[b.ID].InFlight; open != sockets {
		t.Errorf("%d are counted", open)
	}
	for _, conn := range conns {
		wantEcho(t, conn, 0)
	}
}

// wantEcho reads an answer with a status, unless that is 0, and says something.
func wantEcho(t *testing.T, conn net.Conn, status int) {
	t.Helper()
	if status != 0 {
		head := make([]byte, 0, 512)
		for one := make([]byte, 1); len(head) < 4 || string(head[len(head)-4:]) != "\r\n\r\n"; head = append(head, one[0]) {
			if _, err := conn.Read(one); err != nil {
				t.Errorf("after %q: %v", head, err)
				return
			}
		}
		if want := fmt.Sprintf("HTTP/1.1 %d ", status); string(head[:len(want)]) != want {
			t.Errorf("answered %q", head)
			return
		}
	}
	var back [4]byte
	io.WriteString(conn, "ping")
	if _, err := io.ReadFull(conn, back[:]); err != nil || string(back[:]) != "ping" {
		t.Errorf("got %q back, %v", back, err)
	}
}
