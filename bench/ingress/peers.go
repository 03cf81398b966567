package main

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/moat-sandbox/moat/bench/peers"
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
	peers.Peer
	plain, secure string // ports
}

// server is a peer whose command and configuration, a file of that name, speak
// of its directory as DIR.
func server(dir, name, plain, secure, config, text string, command ...string) peer {
	fill := func(s string) string { return strings.ReplaceAll(s, "DIR", dir) }
	p := peers.Peer{Name: name, Package: command[0], Program: command[0], Env: append(os.Environ(), "HOME="+dir), Listens: "127.0.0.1:" + plain}
	for _, arg := range command[1:] {
		p.Args = append(p.Args, fill(arg))
	}
	if config != "" {
		p.Files = map[string]string{filepath.Join(dir, config): fill(text)}
	}
	return peer{p, plain, secure}
}

// app is the program in the sandbox: nginx, which answers as fast as anything.
func app(dir string) peer {
	return server(dir, "upstream", appPort, "", "app.conf", appConfig, "nginx", "-c", "DIR/app.conf")
}

func rivals(dir, self string) []peer {
	return []peer{
		server(dir, "nginx", "9001", "9101", "nginx.conf", nginxConfig, "nginx", "-c", "DIR/nginx.conf"),
		server(dir, "HAProxy", "9002", "9102", "haproxy.cfg", haproxyConfig, "haproxy", "-f", "DIR/haproxy.cfg"),
		server(dir, "Caddy", "9003", "9103", "Caddyfile", caddyConfig, "caddy", "run", "--config", "DIR/Caddyfile", "--adapter", "caddyfile"),
		moat(dir, self, "moat", "9004", "9104"),
		moat(dir, self, "moat, 100,000 known", "9005", "9105", "-known", "100000"),
		moat(dir, self, "moat with its log", "9006", "9106", "-log"),
	}
}

func moat(dir, self, name, plain, secure string, more ...string) peer {
	return server(dir, name, plain, secure, "", "", append(
		[]string{self, "-serve", "DIR", "-plain", "127.0.0.1:" + plain, "-secure", "127.0.0.1:" + secure}, more...)...)
}

const appConfig = `worker_processes 1; daemon off; pid DIR/app.pid; error_log DIR/app.err;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 100000000; keepalive_timeout 600s;
 server { listen 127.0.0.1:8080 backlog=4096; location / { return 200 "hello, this is a small body of some bytes\n"; }
  location /big { root DIR; sendfile on; } } }`

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
