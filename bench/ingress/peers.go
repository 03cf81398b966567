package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// What all of them route and check.
const (
	domain    = "moat.test"
	sandboxID = "iabcdefghijklmnopqrst"
	token     = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	appPort   = "8080"
	host      = appPort + "-" + sandboxID + "." + domain

	certFile, keyFile = "cert.pem", "key.pem"
	bigSize           = 1 << 20 // bytes
)

// peer is a server under measurement.
type peer struct {
	name          string
	plain, secure string // ports
	config, text  string // a file and what is in it; DIR stands for its directory
	command       []string
}

// app is the program in the sandbox: nginx, which answers as fast as anything.
var app = peer{
	name: "upstream", plain: appPort, config: "app.conf",
	text: `worker_processes 1; daemon off; pid DIR/app.pid; error_log DIR/app.err;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
 server { listen 127.0.0.1:8080 backlog=4096; location / { return 200 "hello, this is a small body of some bytes\n"; }
  location /big { root DIR; sendfile on; } } }`,
	command: []string{"nginx", "-c", "DIR/app.conf"},
}

func peers(self string) []peer {
	return []peer{
		{name: "nginx", plain: "9001", secure: "9101", config: "nginx.conf", command: []string{"nginx", "-c", "DIR/nginx.conf"}, text: nginxConfig},
		{name: "HAProxy", plain: "9002", secure: "9102", config: "haproxy.cfg", command: []string{"haproxy", "-f", "DIR/haproxy.cfg"}, text: haproxyConfig},
		{name: "Caddy", plain: "9003", secure: "9103", config: "Caddyfile", command: []string{"caddy", "run", "--config", "DIR/Caddyfile", "--adapter", "caddyfile"}, text: caddyConfig},
		moat(self, "moat", "9004", "9104"),
		moat(self, "moat, 100,000 known", "9005", "9105", "-known", "100000"),
		moat(self, "moat with its log", "9006", "9106", "-log"),
	}
}

func moat(self, name, plain, secure string, more ...string) peer {
	return peer{name: name, plain: plain, secure: secure, command: append(
		[]string{self, "-serve", "DIR", "-plain", "127.0.0.1:" + plain, "-secure", "127.0.0.1:" + secure}, more...)}
}

const nginxConfig = `worker_processes 2; daemon off; pid DIR/nginx.pid; error_log DIR/nginx.err;
events { worker_connections 8192; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s; proxy_http_version 1.1; proxy_buffering off; proxy_buffer_size 64k; proxy_buffers 8 64k;
 map $host $target { ~^(?<port>[0-9]+)-` + sandboxID + `\.moat\.test$ app; }
 upstream app { server 127.0.0.1:8080; keepalive 600; keepalive_requests 100000000; }
 server { listen 127.0.0.1:9001 backlog=4096; listen 127.0.0.1:9101 ssl backlog=4096;
  ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem; ssl_protocols TLSv1.2 TLSv1.3;
  location / { if ($http_e2b_traffic_access_token != "` + token + `") { return 403; }
   proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host;
   proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header e2b-traffic-access-token ""; proxy_pass http://$target; } } }`

const haproxyConfig = `global
 nbthread 2
 maxconn 8192
 tune.ssl.default-dh-param 2048
defaults
 mode http
 timeout connect 5s
 timeout client 600s
 timeout server 600s
 http-reuse always
frontend in
 bind 127.0.0.1:9002 backlog 4096
 bind 127.0.0.1:9102 ssl crt DIR/both.pem alpn h2,http/1.1 backlog 4096
 acl known hdr(host) -i ` + host + `
 acl may req.hdr(e2b-traffic-access-token) -m str ` + token + `
 http-request deny deny_status 403 unless may
 http-request set-header X-Forwarded-Host %[req.hdr(host)]
 http-request set-header X-Forwarded-For %[src]
 http-request set-header X-Forwarded-Proto https if { ssl_fc }
 http-request del-header e2b-traffic-access-token
 use_backend app if known
backend app
 server app 127.0.0.1:8080
`

const caddyConfig = `{
 admin off
 auto_https off
 log {
  output discard
 }
}
(proxy) {
 bind 127.0.0.1
 @ok header e2b-traffic-access-token ` + token + `
 @h host ` + host + `
 handle @ok {
  handle @h {
   reverse_proxy 127.0.0.1:8080 {
    header_up -e2b-traffic-access-token
    flush_interval -1
    transport http {
     keepalive_idle_conns_per_host 600
    }
   }
  }
 }
 respond 403
}
http://:9003 {
 import proxy
}
https://localhost:9103, https://*.moat.test:9103 {
 tls DIR/cert.pem DIR/key.pem
 import proxy
}
`

// start runs a peer until stop is called; installed is false when it cannot be
// found on this machine.
func (p peer) start(ctx context.Context, dir string) (process *exec.Cmd, installed bool, err error) {
	fill := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
	program, err := exec.LookPath(p.command[0])
	if err != nil {
		return nil, false, nil
	}
	if p.config != "" {
		if err := os.WriteFile(filepath.Join(dir, p.config), []byte(fill(p.text)), 0o600); err != nil {
			return nil, true, err
		}
	}
	cmd := exec.CommandContext(ctx, program)
	for _, arg := range p.command[1:] {
		cmd.Args = append(cmd.Args, fill(arg))
	}
	cmd.Env = append(os.Environ(), "HOME="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return nil, true, err
	}
	for range 200 {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+p.plain); err == nil {
			return cmd, true, conn.Close()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return cmd, true, fmt.Errorf("%s does not listen: %s", p.name, out.String())
}
