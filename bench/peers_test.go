package bench

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// peer is another program that does what we are measured at.
type peer struct {
	name    string
	pkg     string // of Debian, that has it
	program string
	args    []string
	files   map[string]string // what it reads, by path; parts of /run, which the node has for itself
	port    int               // of TCP, where it listens on the node
}

// peerStart bounds the time until a peer listens.
const peerStart = 30 * time.Second

// start runs a peer on a node until the benchmark ends and returns its process
// id. It reports false, and says so where the results are, if the machine does
// not have it.
func (p peer) start(b *testing.B, node *lab.Node) (pid int, ok bool) {
	b.Helper()
	if _, err := exec.LookPath(p.program); err != nil {
		fmt.Printf("\n%s: NOT MEASURED: %s is missing (apt-get install %s)\n", b.Name(), p.name, p.pkg)
		return 0, false
	}
	for _, path := range slices.Sorted(maps.Keys(p.files)) {
		if err := node.WriteFile(path, []byte(p.files[path]), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	cmd := node.Command(b.Context(), p.program, p.args...)
	cmd.Env = harness.CleanEnv()
	said, err := os.Create(filepath.Join(b.TempDir(), "said"))
	if err != nil {
		b.Fatal(err)
	}
	defer said.Close() // the process has its own
	cmd.Stdout, cmd.Stderr = said, said
	run(b, cmd)
	deadline := time.Now().Add(peerStart)
	for ; ; <-time.After(20 * time.Millisecond) {
		conn, err := node.Dial(b.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
		if err == nil {
			conn.Close()
			return cmd.Process.Pid, true
		}
		if time.Now().After(deadline) {
			text, _ := os.ReadFile(said.Name()) // without it the error tells less
			b.Fatalf("%s does not listen: %v: %s", p.name, err, text)
		}
	}
}

// run starts a process that ends with the benchmark.
func run(b *testing.B, cmd *lab.Cmd) {
	b.Helper()
	cmd.WaitDelay = time.Second // its children end with the laboratory only
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { // after the benchmark's context has ended, which kills it
		_ = cmd.Wait()
	})
}

// nginxStream passes connections on by the name in their ClientHello, to
// addresses that its table has for the names.
func nginxStream(names []string, port int) peer {
	var table strings.Builder
	for _, name := range names {
		fmt.Fprintf(&table, "%s %s:443;\n", name, serverAddr)
	}
	return peer{
		name: "nginx stream", pkg: "libnginx-mod-stream", program: "nginx", port: port,
		args: []string{"-e", "stderr", "-c", "/run/nginx.conf"},
		files: map[string]string{"/run/nginx.conf": fmt.Sprintf(`
			load_module /usr/lib/nginx/modules/ngx_stream_module.so;
			daemon off; user root; pid /run/nginx.pid; error_log /dev/null;
			worker_processes auto; worker_rlimit_nofile 16384;
			events { worker_connections 4096; }
			stream {
				map_hash_max_size 65536; map_hash_bucket_size 128;
				map $ssl_preread_server_name $upstream {
					default 127.0.0.1:9;
					%s
				}
				server { listen %d reuseport backlog=4096; ssl_preread on; proxy_pass $upstream; }
			}`, table.String(), port)},
	}
}

// haproxyTCP does the same; its one upstream has a fixed address.
func haproxyTCP(names []string, port int) peer {
	return peer{
		name: "HAProxy tcp", pkg: "haproxy", program: "haproxy", port: port,
		args: []string{"-db", "-f", "/run/haproxy.cfg"},
		files: map[string]string{
			"/run/haproxy.names": strings.Join(names, "\n") + "\n",
			"/run/haproxy.cfg": fmt.Sprintf(`
global
	maxconn 4096
defaults
	mode tcp
	timeout connect 5s
	timeout client 1m
	timeout server 1m
frontend in
	bind :%d backlog 4096
	tcp-request inspect-delay 5s
	tcp-request content accept if { req.ssl_sni -i -f /run/haproxy.names }
	tcp-request content reject
	default_backend out
backend out
	server upstream %s:443
`, port, serverAddr)},
	}
}

// squidConf is what all uses of Squid have in common. It must not be root.
const squidConf = `
pid_filename /run/squid.pid
access_log none
cache_log /dev/null
cache_store_log none
cache deny all
cache_mem 8 MB
coredump_dir /
shutdown_lifetime 0 seconds
http_access allow all
http_port 127.0.0.1:3128
max_filedescriptors 16384
`

// squidSplice passes connections on by name, to the address that the client
// chose, after it has seen the ClientHello (peek and splice).
func squidSplice(b *testing.B, l *lab.Lab, names []string, port int) peer {
	cert, key, err := l.Certificate("squid.test")
	if err != nil {
		b.Fatal(err)
	}
	return peer{
		name: "Squid splice", pkg: "squid-openssl", program: "squid", port: port,
		args: []string{"-N", "-f", "/run/squid.conf"},
		files: map[string]string{
			"/run/squid.pem":   string(cert) + string(key),
			"/run/squid.names": strings.Join(names, "\n") + "\n",
			"/run/squid.conf": squidConf + fmt.Sprintf(`
https_port %d intercept ssl-bump cert=/run/squid.pem generate-host-certificates=off
acl hello at_step SslBump1
acl names ssl::server_name "/run/squid.names"
ssl_bump peek hello
ssl_bump splice names
ssl_bump terminate all
`, port)},
	}
}
