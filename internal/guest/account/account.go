// Package account knows the sandbox's users and acts with their rights.
//
// The daemon is root, but what it does for a caller it does as the user the
// caller chose. Users are read from the sandbox's own files each time: code in
// the sandbox may add users whenever it likes.
package account

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// ErrUnknown means that the sandbox has no such user.
var ErrUnknown = errors.New("unknown user")

// Root is the user everything is allowed to.
const Root = "root"

// maxFileBytes bounds how much of a users file is read: root in the sandbox
// can write anything there.
const maxFileBytes = 1 << 20

// User is one user of the sandbox, as a process or a file operation needs it.
type User struct {
	Name   string
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary
	Home   string
}

// Book is the sandbox's users and groups at one moment.
type Book struct {
	users  []User
	groups []group
}

type group struct {
	name    string
	gid     uint32
	members []string
}

// Open reads /etc/passwd and /etc/group. Where they do not exist only root
// is known, so that minimal images work.
func Open() (*Book, error) { return open("/etc/passwd", "/etc/group") }

func open(passwdPath, groupPath string) (*Book, error) {
	b := &Book{}
	err := eachLine(passwdPath, func(f []string) {
		// name:password:uid:gid:comment:home:shell
		if len(f) < 6 || f[0] == "" {
			return
		}
		uid, okU := parseID(f[2])
		gid, okG := parseID(f[3])
		if okU && okG {
			b.users = append(b.users, User{Name: f[0], UID: uid, GID: gid, Home: f[5]})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	err = eachLine(groupPath, func(f []string) {
		// name:password:gid:member,member
		if len(f) < 4 || f[0] == "" {
			return
		}
		if gid, ok := parseID(f[2]); ok {
			b.groups = append(b.groups, group{f[0], gid, strings.Split(f[3], ",")})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	return b, nil
}

// User finds a user by name. It returns ErrUnknown when there is none.
func (b *Book) User(name string) (User, error) {
	for _, u := range b.users {
		if u.Name != name {
			continue
		}
		u.Groups = b.memberships(u)
		if u.Home == "" {
			u.Home = "/"
		}
		return u, nil
	}
	if name == Root {
		return User{Name: Root, Home: "/root"}, nil
	}
	return User{}, fmt.Errorf("%w %s", ErrUnknown, name)
}

func (b *Book) memberships(u User) []uint32 {
	gids := []uint32{u.GID}
	for _, g := range b.groups {
		if g.gid == u.GID {
			continue
		}
		for _, member := range g.members {
			if member == u.Name {
				gids = append(gids, g.gid)
				break
			}
		}
	}
	return gids
}

// UserName returns the name of the user with an id, or the id in decimal.
func (b *Book) UserName(uid uint32) string {
	for _, u := range b.users {
		if u.UID == uid {
			return u.Name
		}
	}
	return strconv.FormatUint(uint64(uid), 10)
}

// GroupName returns the name of the group with an id, or the id in decimal.
func (b *Book) GroupName(gid uint32) string {
	for _, g := range b.groups {
		if g.gid == gid {
			return g.name
		}
	}
	return strconv.FormatUint(uint64(gid), 10)
}

// eachLine hands the colon-separated fields of every line to visit. A missing
// file has no lines.
func eachLine(path string, visit func(fields []string)) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(io.LimitReader(f, maxFileBytes))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line != "" && line[0] != '#' {
			visit(strings.Split(line, ":"))
		}
	}
	return lines.Err()
}

// parseID takes a user or group id. The largest value is no id: in system
// calls it means "leave unchanged", which here would mean root.
func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}
