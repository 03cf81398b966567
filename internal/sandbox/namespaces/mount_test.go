package namespaces

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMount(t *testing.T) {
	got, err := parseMount(`36 35 98:0 /mnt\0401 /a\134b\011c rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue`)
	if want := (mount{point: "/a\\b\tc", root: "/mnt 1", fsType: "ext3", options: "rw,errors=continue"}); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "36 35 98:0 / /a rw", "1 2 3 - ext4 x rw", "36 35 98:0 / /a rw - ext4"} {
		if m, err := parseMount(bad); err == nil {
			t.Errorf("%q was read as %+v", bad, m)
		}
	}
}

func mountOrFail(t *testing.T, source, target, fsType string, bind bool) {
	t.Helper()
	var flags uintptr
	if bind {
		flags = unix.MS_BIND
	}
	if err := os.MkdirAll(target, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(source, target, fsType, flags, ""); err != nil {
		t.Fatal(err)
	}
	if bind {
		if err := unix.Mount("", target, "", unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
	}
}
