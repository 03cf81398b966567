package rootfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/moat-sandbox/moat/internal/template/account"
	"github.com/moat-sandbox/moat/internal/template/erofs"
)

// Defaults are the user and working directory of commands that name none.
type Defaults struct {
	User, Workdir string
}

// Complete adds what a sandbox needs and an image may lack: mount points, root
// and the sandbox's own user, a temporary directory. It returns the defaults
// with the user's name and the directory filled in, both of which exist.
//
// want.User is as image configurations have it: a name or number, also with a
// group after a colon, which is not kept; empty means the sandbox's own user.
func (b *Builder) Complete(want Defaults) (Defaults, error) {
	for _, dir := range []struct {
		path string
		perm uint16
	}{
		{"proc", 0o555}, {"sys", 0o555}, {"dev", 0o755}, {"run", 0o755}, {"etc", 0o755}, {"root", 0o700},
		{"tmp", unix.S_ISVTX | 0o777}, {"var/tmp", unix.S_ISVTX | 0o777}, {".moat", 0o755},
	} {
		if err := b.mkdir(dir.path, dir.perm, 0, 0); err != nil {
			return Defaults{}, err
		}
	}
	if !b.Exists("etc/hosts") {
		if err := b.writeFile("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644); err != nil {
			return Defaults{}, err
		}
	}
	user, err := b.addUsers(want.User)
	if err != nil {
		return Defaults{}, err
	}
	dir := want.Workdir
	if dir == "" || path.Clean("/"+dir) == "/" {
		dir = user.Home
	}
	dir = path.Clean("/" + dir)
	return Defaults{User: user.Name, Workdir: dir}, b.mkdir(dir, 0o755, user.UID, user.GID)
}

// addUsers edits the account files and returns the user that want means.
func (b *Builder) addUsers(want string) (account.User, error) {
	var files account.Files
	texts := []struct {
		name string
		text *string
		perm uint16
	}{{"etc/passwd", &files.Passwd, 0o644}, {"etc/group", &files.Group, 0o644}, {"etc/shadow", &files.Shadow, 0o600}}
	for _, t := range texts {
		data, err := b.readFile(t.name)
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return account.User{}, fmt.Errorf("read /%s: %w", t.name, err)
		}
		*t.text = string(data)
	}
	shell := "/bin/sh"
	if b.Exists("bin/bash") {
		shell = "/bin/bash"
	}
	files.EnsureRoot(shell)
	own := files.Ensure(account.Default, account.DefaultHome, shell)
	chosen, err := choose(&files, want, own, shell)
	if err != nil {
		return account.User{}, err
	}
	for _, t := range texts {
		if err := b.writeFile(t.name, *t.text, t.perm); err != nil {
			return account.User{}, err
		}
	}
	if err := b.addHome(own); err != nil {
		return account.User{}, err
	}
	return chosen, b.addSudo()
}

// choose finds the user an image asks for.
func choose(files *account.Files, want string, own account.User, shell string) (account.User, error) {
	name, _, _ := strings.Cut(want, ":")
	if name == "" {
		return own, nil
	}
	if u, ok := files.Lookup(name); ok {
		return u, nil
	}
	uid, err := strconv.ParseUint(name, 10, 32)
	if err != nil {
		return account.User{}, fmt.Errorf("the image wants to run as user %.64q, whom its /etc/passwd does not have", name)
	}
	if u, ok := files.LookupID(uint32(uid)); ok {
		return u, nil
	}
	// Images may name a number that nobody has; programs want a name for it.
	u := account.User{Name: "u" + name, UID: uint32(uid), GID: uint32(uid), Home: "/"}
	return files.Add(u, shell), nil
}

// addHome makes the user's home directory, with the usual files if it is new.
func (b *Builder) addHome(u account.User) error {
	home := strings.Trim(u.Home, "/")
	if home == "" || b.Exists(home) {
		return nil
	}
	if err := b.mkdir(home, 0o755, u.UID, u.GID); err != nil {
		return err
	}
	skeleton := account.Skeleton()
	for _, name := range slices.Sorted(maps.Keys(skeleton)) {
		if err := b.writeFile(home+"/"+name, skeleton[name], 0o644); err != nil {
			return err
		}
		node, err := b.lookup(home + "/" + name)
		if err != nil {
			return err
		}
		node.UID, node.GID = u.UID, u.GID
	}
	return nil
}

// addSudo lets the sandbox's user become root, where the image has sudo.
func (b *Builder) addSudo() error {
	if !b.Exists("usr/bin/sudo") && !b.Exists("bin/sudo") && !b.Exists("usr/local/bin/sudo") {
		return nil
	}
	text, err := b.readFile("etc/sudoers")
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("read /etc/sudoers: %w", err)
	}
	if bytes.Contains(text, []byte(account.SudoersLine)) {
		return nil
	}
	if len(text) == 0 {
		text = []byte("root ALL=(ALL:ALL) ALL\n")
	}
	if !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	return b.writeFile("etc/sudoers", string(text)+account.SudoersLine, 0o440)
}

// Exists reports whether the tree has a file of that name, links followed.
func (b *Builder) Exists(name string) bool {
	_, err := b.lookup(name)
	return err == nil
}

func (b *Builder) lookup(name string) (*erofs.Node, error) {
	names, err := splitPath(name)
	if err != nil {
		return nil, err
	}
	return b.walk(names, false)
}

// maxText bounds the files of an image that are read as text, in bytes.
const maxText = 1 << 20

func (b *Builder) readFile(name string) ([]byte, error) {
	node, err := b.lookup(name)
	if err != nil {
		return nil, err
	}
	if !node.IsRegular() || node.Data.Size > maxText {
		return nil, fmt.Errorf("not a regular file of at most %d bytes", maxText)
	}
	return io.ReadAll(b.image.Data(node.Data))
}

// writeFile gives a file new content and keeps its owner and mode, or makes it
// with this mode for root.
func (b *Builder) writeFile(name, data string, perm uint16) error {
	file, err := b.regular(strings.NewReader(data), erofs.Node{Mode: unix.S_IFREG | perm})
	if err != nil {
		return err
	}
	if old, err := b.lookup(name); err == nil && old.IsRegular() {
		b.image.Discard(old.Data)
		old.Data = file.Data
		return nil
	}
	names, err := splitPath(name)
	if err != nil {
		return err
	}
	dir, last, err := b.parent(names)
	if err != nil {
		return fmt.Errorf("make /%s: %w", name, err)
	}
	return b.set(dir, last, file)
}

// mkdir makes a directory, with its parents, unless it exists.
func (b *Builder) mkdir(name string, perm uint16, uid, gid uint32) error {
	names, err := splitPath(name)
	if err != nil || len(names) == 0 {
		return err
	}
	if node, err := b.walk(names, false); err == nil {
		if !node.IsDir() {
			return fmt.Errorf("make directory /%s: the image has a file of that name", name)
		}
		return nil
	}
	node, err := b.walk(names, true)
	if err != nil {
		return fmt.Errorf("make directory /%s: %w", name, err)
	}
	node.Mode, node.UID, node.GID = unix.S_IFDIR|perm, uid, gid
	return nil
}
