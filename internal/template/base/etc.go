package base

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moat-sandbox/moat/internal/template/account"
)

// Path is the search path of every process in the base template.
const Path = "/opt/moat/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Env is the environment that commands in the base template start from.
func Env() []string {
	return []string{
		"PATH=" + Path,
		"LANG=C.UTF-8",
		// Distributions keep pip from their own packages' files. Here those are
		// read-only and what a sandbox changes ends with it.
		"PIP_BREAK_SYSTEM_PACKAGES=1",
	}
}

// mergedDirs are the directories that are links into /usr.
var mergedDirs = map[string]bool{"bin": true, "sbin": true, "lib": true, "lib32": true, "lib64": true, "libx32": true}

// makePlan decides every file of the root directory, all but /usr.
func makePlan(host string) (plan, error) {
	p := plan{}
	for dir, mode := range map[string]fs.FileMode{
		"dev": 0o755, "etc": 0o755, "home": 0o755, "media": 0o755, "mnt": 0o755, "opt": 0o755,
		"proc": 0o555, "root": 0o700, "run": 0o755, "run/lock": 0o777, "srv": 0o755, "sys": 0o555, "usr": 0o755,
		"var": 0o755, "var/cache": 0o755, "var/lib": 0o755, "var/log": 0o755,
		"tmp": fs.ModeSticky | 0o777, "var/tmp": fs.ModeSticky | 0o777,
		".moat": 0o755, "opt/moat/bin": 0o755,
	} {
		p.dir(dir, mode)
	}
	p.link("var/run", "/run")
	p.link("var/lock", "/run/lock")
	if err := addMerged(p, host); err != nil {
		return nil, err
	}
	if err := addPublic(p, host); err != nil {
		return nil, err
	}
	if err := addTrust(p, host); err != nil {
		return nil, err
	}
	addGenerated(p)
	if err := addUsers(p, host); err != nil {
		return nil, err
	}
	if !exists(host, "usr/bin/python") && exists(host, "usr/bin/python3") {
		p.link("opt/moat/bin/python", "/usr/bin/python3")
	}
	return p, nil
}

// addMerged plans /bin and its like as the links that the host has.
func addMerged(p plan, host string) error {
	for name := range mergedDirs {
		target, err := os.Readlink(filepath.Join(host, name))
		switch {
		case errors.Is(err, fs.ErrNotExist) && name != "bin" && name != "lib":
			continue
		case err != nil:
			return fmt.Errorf("the base template needs a machine whose /%s is a link into /usr: %w", name, err)
		}
		if target = filepath.Clean("/" + target); filepath.Dir(target) != "/usr" {
			return fmt.Errorf("the base template needs a machine whose /%s is a link into /usr: it points to %s", name, target)
		}
		p.link(name, target[1:])
	}
	return nil
}

func exists(host, name string) bool {
	_, err := os.Stat(filepath.Join(host, name))
	return err == nil
}

// addGenerated plans the files of /etc that are ours and the same everywhere.
func addGenerated(p plan) {
	for name, data := range map[string]string{
		"bash.bashrc":   "[ -z \"$PS1\" ] || PS1='\\u@\\h:\\w\\$ '\n",
		"environment":   "PATH=" + Path + "\n",
		"fstab":         "",
		"host.conf":     "multi on\n",
		"hostname":      "sandbox\n",
		"hosts":         "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
		"machine-id":    "",
		"nsswitch.conf": nsswitch,
		"pam.d/other":   pamOther,
		"profile":       profile,
		// The driver or the guest replaces it; a sandbox never asks the host's.
		"resolv.conf": "nameserver 8.8.8.8\n",
	} {
		p.file("etc/"+name, data, 0o644)
	}
	p.dir("etc/profile.d", 0o755)
	p.link("etc/mtab", "../proc/self/mounts")
}

const nsswitch = `passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
ethers: files
rpc: files
`

// pamOther serves every program that asks PAM: root may do what it likes,
// nobody else gets past a password, accounts and sessions are no matter.
const pamOther = `auth sufficient pam_rootok.so
auth required pam_deny.so
account required pam_permit.so
password required pam_unix.so
session required pam_permit.so
`

const profile = `export PATH="` + Path + `"
if [ -d /etc/profile.d ]; then
	for file in /etc/profile.d/*.sh; do
		[ -r "$file" ] && . "$file"
	done
	unset file
fi
if [ -n "$BASH_VERSION" ] && [ -n "$PS1" ] && [ -r /etc/bash.bashrc ]; then
	. /etc/bash.bashrc
fi
true
`

// systemPasswd and systemGroup are the accounts that programs expect beside root and the
// sandbox's own user.
const systemPasswd = `daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
bin:x:2:2:bin:/bin:/usr/sbin/nologin
sys:x:3:3:sys:/dev:/usr/sbin/nologin
mail:x:8:8:mail:/var/mail:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
`

const systemGroup = `daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
kmem:x:15:
sudo:x:27:
www-data:x:33:
shadow:x:42:
utmp:x:43:
video:x:44:
staff:x:50:
users:x:100:
nogroup:x:65534:
`

// shadowGroup owns the shadow file, as systemGroup numbers it.
const shadowGroup = 42

// addUsers plans the account files and the home directories.
func addUsers(p plan, host string) error {
	shell := "/bin/bash"
	if !exists(host, "usr/bin/bash") {
		shell = "/bin/sh"
	}
	if !exists(host, "usr/bin/sh") {
		return errors.New("the base template needs a machine with /usr/bin/sh")
	}
	files := account.Files{Passwd: systemPasswd, Group: systemGroup}
	files.EnsureRoot(shell)
	user := files.Ensure(account.Default, account.DefaultHome, shell)
	p.file("etc/passwd", files.Passwd, 0o644)
	p.file("etc/group", files.Group, 0o644)
	p["etc/shadow"] = entry{mode: 0o640, gid: shadowGroup, data: files.Shadow}

	home := user.Home[1:]
	p.parents(home)
	p[home] = entry{mode: fs.ModeDir | 0o755, uid: int(user.UID), gid: int(user.GID)}
	for name, data := range account.Skeleton() {
		p[home+"/"+name] = entry{mode: 0o644, uid: int(user.UID), gid: int(user.GID), data: data}
	}
	if slices.ContainsFunc([]string{"usr/bin/sudo", "usr/local/bin/sudo"}, func(name string) bool { return exists(host, name) }) {
		p.file("etc/sudoers", sudoers, 0o440)
		p.dir("etc/sudoers.d", 0o755)
	}
	return nil
}

const sudoers = `Defaults env_reset, !lecture
Defaults secure_path="` + Path + `"
root ALL=(ALL:ALL) ALL
` + account.SudoersLine + `@includedir /etc/sudoers.d
`
