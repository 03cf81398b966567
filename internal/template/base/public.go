package base

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// publicFiles are what programs below /usr need of the host's /etc and what
// says nothing about the host that matters. Only what is listed is copied, and
// of that only what everyone may read.
var publicFiles = []string{
	"ImageMagick-*",
	"R",
	"alternatives",
	"crypto-policies/back-ends",
	"debian_version",
	"fonts",
	"inputrc",
	"java-*",
	"ld.so.cache",
	"ld.so.conf",
	"ld.so.conf.d",
	"libreoffice",
	"locale.alias",
	"localtime",
	"login.defs",
	"lsb-release",
	"magic",
	"magic.mime",
	"mime.types",
	"os-release",
	"pki/tls/openssl.cnf",
	"protocols",
	"redhat-release",
	"rpc",
	"services",
	"shells",
	"ssl/certs",
	"ssl/openssl.cnf",
	"terminfo",
	"texmf",
	"timezone",
}

// maxPublicFile bounds one copied file, in bytes.
const maxPublicFile = 16 << 20

// addPublic plans copies of the host's public files.
func addPublic(p plan, host string) error {
	for _, pattern := range publicFiles {
		matches, err := filepath.Glob(filepath.Join(host, "etc", pattern))
		if err != nil {
			return err
		}
		for _, match := range matches {
			rel, err := filepath.Rel(host, match)
			if err != nil {
				return err
			}
			if err := copyPublic(p, host, rel, 0); err != nil {
				return fmt.Errorf("copy /%s of this machine: %w", rel, err)
			}
		}
	}
	return nil
}

// maxPublicDepth bounds how deep directories are copied.
const maxPublicDepth = 12

// copyPublic plans a copy of rel and what is below it.
func copyPublic(p plan, host, rel string, depth int) error {
	name := filepath.Join(host, rel)
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	perm := info.Mode().Perm()
	switch {
	case info.Mode().Type() == fs.ModeSymlink:
		return copyLink(p, name, rel)
	case info.Mode().IsRegular() && perm&0o004 != 0 && info.Size() <= maxPublicFile:
		data, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Contains(data, privateKey) {
			p.file(rel, string(data), 0o644|perm&0o111)
		}
		return nil
	case info.IsDir() && perm&0o005 == 0o005 && depth < maxPublicDepth:
		p.dir(rel, 0o755)
		entries, err := os.ReadDir(name)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if credentialNames[e.Name()] {
				continue
			}
			if err := copyPublic(p, host, path.Join(rel, e.Name()), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// copyLink keeps links to what a sandbox may see. Others would dangle, or tell
// where the host keeps things.
func copyLink(p plan, name, rel string) error {
	target, err := os.Readlink(name)
	if err != nil {
		return err
	}
	end := target
	if !path.IsAbs(end) {
		end = path.Join("/", path.Dir(rel), end)
	}
	top, _, below := strings.Cut(strings.TrimPrefix(path.Clean(end), "/"), "/")
	if below && (top == "usr" || top == "etc" || mergedDirs[top]) {
		p.link(rel, target)
	}
	return nil
}

// bundles are where distributions keep the certificates that programs trust.
var bundles = []string{
	"etc/ssl/certs/ca-certificates.crt",
	"etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
	"etc/pki/tls/certs/ca-bundle.crt",
	"etc/ssl/ca-bundle.pem",
	"etc/ssl/cert.pem",
}

// addTrust puts the host's certificate bundle, if it has one, where programs
// of any distribution look for it.
func addTrust(p plan, host string) error {
	for _, name := range bundles {
		data, err := os.ReadFile(filepath.Join(host, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read certificate bundle: %w", err)
		}
		if bytes.Contains(data, privateKey) {
			return fmt.Errorf("certificate bundle /%s holds a private key", name)
		}
		p.file(bundles[0], string(data), 0o644)
		for _, other := range bundles[1:] {
			p.link(other, "/"+bundles[0])
		}
		p.link("etc/pki/tls/cert.pem", "/"+bundles[0])
		return nil
	}
	return nil
}
