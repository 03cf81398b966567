package bench

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/bench/peers"
	"github.com/moat-sandbox/moat/internal/lab"
	"github.com/moat-sandbox/moat/test/harness"
)

// peer is another program that does what we are measured at. Its files are
// parts of /run, which a node has for itself.
type peer struct {
	peers.Peer
	port int // of TCP, where it listens on the node
}

func onNode(port int, p peers.Peer) peer {
	p.Env, p.Listens = harness.CleanEnv(), fmt.Sprintf("127.0.0.1:%d", port)
	return peer{p, port}
}

// start runs a peer on a node until the benchmark ends and returns its process
// id. It reports false, and says so where the results are, if the machine does
// not have it.
func (p peer) start(b *testing.B, node *lab.Node) (pid int, ok bool) {
	b.Helper()
	r, err := p.Start(b.Context(), peers.Node{Node: node})
	switch {
	case errors.Is(err, peers.ErrMissing):
		fmt.Printf("\n%s: NOT MEASURED: %v\n", b.Name(), err)
		return 0, false
	case err != nil:
		b.Fatal(err)
	}
	b.Cleanup(r.Stop)
	return r.PID, true
}

// nginxStream passes connections on by the name in their ClientHello, to
// addresses that its table has for the names.
func nginxStream(names []string, port int) peer {
	var table strings.Builder
	for _, name := range names {
		fmt.Fprintf(&table, "%s %s:443;\n", name, serverAddr)
	}
	return onNode(port, peers.Peer{
		Name: "nginx stream", Package: "libnginx-mod-stream", Program: "nginx",
		Args: []string{"-e", "stderr", "-c", "/run/nginx.conf"},
		Files: map[string]string{"/run/nginx.conf": fmt.Sprintf(`
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
	})
}

// haproxyTCP does the same; its one upstream has a fixed address.
func haproxyTCP(names []string, port int) peer {
	return onNode(port, peers.Peer{
		Name: "HAProxy tcp", Package: "haproxy", Program: "haproxy",
		Args: []string{"-db", "-f", "/run/haproxy.cfg"},
		Files: map[string]string{
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
	})
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
	return onNode(port, peers.Peer{
		Name: "Squid splice", Package: "squid-openssl", Program: "squid",
		Args: []string{"-N", "-f", "/run/squid.conf"},
		Files: map[string]string{
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
	})
}
