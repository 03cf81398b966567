package base

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Whoever sets the template up sees what programs in a sandbox will see, and
// nothing that is written leaves the plan by a link.
func TestFilesOfAPlan(t *testing.T) {
	p := plan{}
	p.dir("usr", 0o755)
	p.file("etc/pki/tls/certs/bundle", "A", 0o600)
	p.link("etc/ssl", "/etc/pki/tls")
	p.link("etc/ssl-of-usr", "../usr/lib/ssl")
	p.link("etc/cert.pem", "ssl/certs/bundle")
	p.link("etc/up", "../../../etc/cert.pem")
	p.link("etc/round", "round")
	for name, want := range map[string]string{
		"etc/pki/tls/certs/bundle": "etc/pki/tls/certs/bundle", "etc/ssl/certs/bundle": "etc/pki/tls/certs/bundle",
		"etc/cert.pem": "etc/pki/tls/certs/bundle", "etc/up": "etc/pki/tls/certs/bundle", "etc/ssl": "etc/pki/tls",
	} {
		if got, err := p.Resolve(name); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	for _, name := range []string{"etc/nothing", "etc/ssl-of-usr/cert.pem", "usr/lib/ssl"} {
		if got, err := p.Resolve(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is %q, %v", name, got, err)
		}
		if _, err := p.Read(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s can be read: %v", name, err)
		}
	}
	if got, err := p.Resolve("etc/round"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a link to itself is %q, %v", got, err)
	}
	if got := p.Find("etc/pki/*/certs/bundle"); !slices.Equal(got, []string{"etc/pki/tls/certs/bundle"}) {
		t.Errorf("found %q", got)
	}

	for _, name := range []string{"usr/file", "etc/ssl-of-usr/file", "usr/share/deep/file"} {
		if err := p.Write(name, "B"); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s can be written: %v", name, err)
		}
	}
	for _, name := range []string{"etc/ssl/certs/extra", "etc/cert.pem", "etc/new/file"} {
		if err := p.Write(name, "B"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range []string{"etc/pki/tls/certs/extra", "etc/cert.pem", "etc/new/file"} {
		if got, err := p.Read(name); err != nil || string(got) != "B" {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if got, err := p.Read("etc/pki/tls/certs/bundle"); err != nil || string(got) != "A" {
		t.Errorf("a file behind a link that was replaced holds %q, %v", got, err)
	}
}

func TestSetUp(t *testing.T) {
	root := host(t, map[string]string{"etc/ssl/certs/ca-certificates.crt": "SYSTEM"})
	dir := filepath.Join(t.TempDir(), "base")
	for _, refused := range []error{nil, errors.New("not so")} {
		b, err := New(Config{Dir: dir, Host: root, SetUp: func(f Files) error {
			before, err := f.Read("etc/ssl/certs/ca-certificates.crt")
			return errors.Join(err, f.Write("etc/ssl/certs/ca-certificates.crt", string(before)+" OURS"), refused)
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := b.Unmount(); err != nil {
				t.Error(err)
			}
		})
		made, err := b.Ensure(t.Context())
		if !errors.Is(err, refused) || err == nil && !made.Trust {
			t.Errorf("made %+v, %v", made, err)
		}
		for _, name := range []string{"etc/ssl/certs/ca-certificates.crt", "etc/ssl/cert.pem"} {
			path := filepath.Join(b.Root(), name)
			if target, err := os.Readlink(path); err == nil {
				path = filepath.Join(b.Root(), target)
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != "SYSTEM OURS" {
				t.Errorf("%s holds %q, %v", name, got, err)
			}
		}
	}
}
