// Package cert has the certificates that the public listeners show: those in
// files, which may be replaced while the server runs, or those of an authority
// of the server's own, for trying out. Both have a method for tls.Config's
// GetCertificate.
package cert

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often the files are looked at, at most.
const lookEvery = time.Second

// Files is a certificate and its key in two PEM files. It reads them again when
// they have changed.
type Files struct {
	cert, key string
	log       *slog.Logger

	mu     sync.Mutex
	loaded *tls.Certificate // never nil; guarded by mu, as are the two below
	seen   stamps           // what was last tried to load
	looked time.Time
}

// stamps tells versions of the two files apart.
type stamps [2]struct {
	modified time.Time
	size     int64
}

// Open loads a certificate and its key. Both must be there and fit.
func Open(cert, key string, log *slog.Logger) (*Files, error) {
	f := &Files{cert: cert, key: key, log: log, looked: time.Now()}
	var err error
	if f.seen, err = f.stat(); err == nil {
		f.loaded, err = f.load()
	}
	if err != nil {
		return nil, fmt.Errorf("load TLS certificate: %w", err)
	}
	return f, nil
}

// Certificate returns what the files hold, for any client. While they do not
// fit together, such as between the writing of one and the other, it is what
// they held before.
func (f *Files) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) >= lookEvery {
		f.looked = time.Now()
		f.look()
	}
	return f.loaded, nil
}

// look loads the files if they have changed. Called with mu held.
func (f *Files) look() {
	now, err := f.stat()
	if err == nil && now == f.seen {
		return
	}
	if err == nil {
		var fresh *tls.Certificate
		if fresh, err = f.load(); err == nil {
			f.loaded, f.seen = fresh, now
			f.log.Info("TLS certificate replaced", "file", f.cert, "expires", fresh.Leaf.NotAfter)
			return
		}
	}
	if now != f.seen { // once for each state of the files
		f.seen = now
		f.log.Warn("TLS certificate has changed and cannot be loaded, the one before stays in use", "err", err)
	}
}

func (f *Files) load() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	return &pair, err
}

func (f *Files) stat() (s stamps, err error) {
	for i, name := range []string{f.cert, f.key} {
		info, err := os.Stat(name)
		if err != nil {
			return stamps{}, err
		}
		s[i].modified, s[i].size = info.ModTime(), info.Size()
	}
	return s, nil
}
