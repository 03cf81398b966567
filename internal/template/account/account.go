// Package account edits the text of /etc/passwd and its companions, so that
// every template has the users sandboxes run as.
package account

import (
	"fmt"
	"strconv"
	"strings"
)

// Default is the user that commands run as unless they name another.
const (
	Default     = "user"
	DefaultHome = "/home/user"
	defaultID   = 1000
)

// Files are the contents of /etc/passwd, /etc/group and /etc/shadow. Lines
// that make no sense are left as they are.
type Files struct {
	Passwd, Group, Shadow string
}

// User is one line of /etc/passwd.
type User struct {
	Name     string
	UID, GID uint32
	Home     string
}

// Lookup finds a user by name.
func (f *Files) Lookup(name string) (User, bool) {
	for line := range strings.Lines(f.Passwd) {
		if u, ok := parseUser(line); ok && u.Name == name {
			return u, true
		}
	}
	return User{}, false
}

// LookupID finds the first user with this number.
func (f *Files) LookupID(uid uint32) (User, bool) {
	for line := range strings.Lines(f.Passwd) {
		if u, ok := parseUser(line); ok && u.UID == uid {
			return u, true
		}
	}
	return User{}, false
}

// EnsureRoot adds root and its group where they are missing.
func (f *Files) EnsureRoot(shell string) {
	if _, ok := f.Lookup("root"); !ok {
		f.Passwd = fmt.Sprintf("root:x:0:0:root:/root:%s\n", shell) + f.Passwd
	}
	if _, ok := f.groupByName("root"); !ok {
		f.Group = "root:x:0:\n" + f.Group
	}
	f.lock("root")
}

// Ensure returns the user with this name, adding it with a group of its own
// and no password where it is missing. It gets number 1000, or the next that
// is free as a user's and a group's.
func (f *Files) Ensure(name, home, shell string) User {
	if u, ok := f.Lookup(name); ok {
		f.lock(name)
		return u
	}
	taken := f.ids()
	id := uint32(defaultID)
	for taken[id] {
		id++
	}
	return f.Add(User{Name: name, UID: id, GID: id, Home: home}, shell)
}

// Add appends u, which must be new, and its group where no group has that
// name or number.
func (f *Files) Add(u User, shell string) User {
	if gid, ok := f.groupByName(u.Name); ok {
		u.GID = gid
	} else if !f.hasGroup(u.GID) {
		f.Group = terminated(f.Group) + fmt.Sprintf("%s:x:%d:\n", u.Name, u.GID)
	}
	f.Passwd = terminated(f.Passwd) + fmt.Sprintf("%s:x:%d:%d::%s:%s\n", u.Name, u.UID, u.GID, u.Home, shell)
	f.lock(u.Name)
	return u
}

// lock gives name a line in the shadow file that no password opens, unless it
// has a line already.
func (f *Files) lock(name string) {
	for line := range strings.Lines(f.Shadow) {
		if strings.HasPrefix(line, name+":") {
			return
		}
	}
	f.Shadow = terminated(f.Shadow) + name + ":*:19000:0:99999:7:::\n"
}

// ids are the numbers that some user or group has.
func (f *Files) ids() map[uint32]bool {
	taken := make(map[uint32]bool)
	for line := range strings.Lines(f.Passwd) {
		if u, ok := parseUser(line); ok {
			taken[u.UID] = true
		}
	}
	for line := range strings.Lines(f.Group) {
		if _, gid, ok := parseGroup(line); ok {
			taken[gid] = true
		}
	}
	return taken
}

func (f *Files) hasGroup(gid uint32) bool {
	for line := range strings.Lines(f.Group) {
		if _, id, ok := parseGroup(line); ok && id == gid {
			return true
		}
	}
	return false
}

func (f *Files) groupByName(name string) (uint32, bool) {
	for line := range strings.Lines(f.Group) {
		if group, gid, ok := parseGroup(line); ok && group == name {
			return gid, true
		}
	}
	return 0, false
}

func parseGroup(line string) (name string, gid uint32, ok bool) {
	fields := strings.Split(strings.TrimSpace(line), ":")
	if len(fields) < 3 {
		return "", 0, false
	}
	id, err := strconv.ParseUint(fields[2], 10, 32)
	return fields[0], uint32(id), err == nil
}

func parseUser(line string) (User, bool) {
	fields := strings.Split(strings.TrimSpace(line), ":")
	if len(fields) < 7 {
		return User{}, false
	}
	uid, errUID := strconv.ParseUint(fields[2], 10, 32)
	gid, errGID := strconv.ParseUint(fields[3], 10, 32)
	if fields[0] == "" || errUID != nil || errGID != nil {
		return User{}, false
	}
	return User{Name: fields[0], UID: uint32(uid), GID: uint32(gid), Home: fields[5]}, true
}

// terminated returns text ending in a newline, or empty.
func terminated(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}
