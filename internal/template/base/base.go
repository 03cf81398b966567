// Package base makes the template that needs no image: the host's own /usr,
// read-only, under a root directory of ours with an /etc made for it.
//
// A sandbox sees the host's programs and nothing else of the host. Of /usr it
// sees what every user of the host may read, less places and files that are
// made to hold credentials; everything else is either generated here or copied
// from a list of public files.
package base

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Config says where the base template goes and what it is made of.
type Config struct {
	// Dir is a directory of its own for it. It is created.
	Dir string
	// Host is the root directory of the machine to show; empty means "/".
	Host string
	// SetUp may change what the template will have; nil changes nothing.
	SetUp func(Files) error
}

// Base is the base template's root directory and its mounts.
type Base struct {
	dir   string
	host  string
	setUp func(Files) error
}

// Made says how the base template came out.
type Made struct {
	Hidden []Hidden // what of the host's /usr is not shown
	Trust  bool     // whether the host had a certificate bundle to copy
	Files  int      // how many files had to be changed
}

// New checks the configuration and touches nothing.
func New(cfg Config) (*Base, error) {
	if cfg.Host == "" {
		cfg.Host = "/"
	}
	if !filepath.IsAbs(cfg.Dir) || !filepath.IsAbs(cfg.Host) {
		return nil, fmt.Errorf("base template in %q of host %q: paths must be absolute", cfg.Dir, cfg.Host)
	}
	usr := filepath.Join(cfg.Host, "usr")
	if dir := filepath.Clean(cfg.Dir) + "/"; strings.HasPrefix(dir, usr+"/") {
		return nil, fmt.Errorf("the data directory lies below %s, which every sandbox would see", usr)
	}
	if cfg.SetUp == nil {
		cfg.SetUp = func(Files) error { return nil }
	}
	return &Base{dir: filepath.Clean(cfg.Dir), host: filepath.Clean(cfg.Host), setUp: cfg.SetUp}, nil
}

// Root is the template's root directory. It is complete once Ensure returned.
func (b *Base) Root() string { return filepath.Join(b.dir, "root") }

// Ensure makes the template or brings what an earlier process left up to date,
// looking at the host anew. Boxes that already run keep the /usr they have;
// none may be started while Ensure works.
func (b *Base) Ensure(ctx context.Context) (Made, error) {
	usr, err := filepath.EvalSymlinks(filepath.Join(b.host, "usr"))
	if err != nil {
		return Made{}, err
	}
	hidden, err := findHidden(ctx, usr)
	if err != nil {
		return Made{}, err
	}
	p, err := makePlan(b.host)
	if err != nil {
		return Made{}, err
	}
	// Only root may come here: what is in it belongs to ids that are people on
	// the host.
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return Made{}, err
	}
	made := Made{Hidden: hidden}
	_, made.Trust = p[bundles[0]]
	if err := b.setUp(p); err != nil {
		return Made{}, fmt.Errorf("set up: %w", err)
	}
	if made.Files, err = p.converge(b.Root()); err != nil {
		return Made{}, err
	}
	return made, b.showUsr(usr, hidden)
}

// showUsr mounts the host's directory usr afresh. When it fails nothing of it
// is shown.
func (b *Base) showUsr(usr string, hidden []Hidden) error {
	root := b.Root()
	if err := isolate(root); err != nil {
		return err
	}
	if err := unmountAll(filepath.Join(root, "usr")); err != nil {
		return err
	}
	mask, err := ensureMask(b.dir, usr, hidden)
	if err != nil {
		return err
	}
	return mountUsr(filepath.Join(root, "usr"), mask, usr)
}

// Complete reports why the template cannot be used, nil if it can.
func (b *Base) Complete() error {
	usr := filepath.Join(b.Root(), "usr")
	mounted, err := isMountPoint(usr)
	if err != nil {
		return err
	}
	if !mounted {
		return errors.New("the host's /usr is not mounted at " + usr)
	}
	return nil
}

// Unmount takes /usr away. Boxes that run keep it.
func (b *Base) Unmount() error { return unmountAll(b.Root()) }
