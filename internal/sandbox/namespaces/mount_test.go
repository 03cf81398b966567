package namespaces

import "testing"

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
