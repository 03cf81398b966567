package rootfs

import (
	"archive/tar"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
)

func TestWhiteouts(t *testing.T) {
	base := []tar.Header{file("a/x", "1"), file("a/y", "2"), file("a/sub/z", "3"), file("b", "4")}
	cases := map[string]struct {
		layers [][]tar.Header
		want   []string
	}{
		"file": {[][]tar.Header{base, {file("a/.wh.x", "")}},
			[]string{"a/", "a/sub/", "a/sub/z 3", "a/y 2", "b 4"}},
		"directory": {[][]tar.Header{base, {file(".wh.a", "")}},
			[]string{"b 4"}},
		"nothing of that name": {[][]tar.Header{base, {file("a/.wh.none", ""), file(".wh.", ""), file(".wh..wh.aufs", "")}},
			[]string{"a/", "a/sub/", "a/sub/z 3", "a/x 1", "a/y 2", "b 4"}},
		"opaque": {[][]tar.Header{base, {file("a/.wh..wh..opq", ""), file("a/new", "5")}},
			[]string{"a/", "a/new 5", "b 4"}},
		"opaque comes last": {[][]tar.Header{base, {dir("a"), file("a/new", "5"), file("a/sub/new", "6"), file("a/.wh..wh..opq", "")}},
			[]string{"a/", "a/new 5", "a/sub/", "a/sub/new 6", "b 4"}},
		"replaced, whiteout first": {[][]tar.Header{base, {file(".wh.a", ""), file("a/new", "5")}},
			[]string{"a/", "a/new 5", "b 4"}},
		"replaced, whiteout last": {[][]tar.Header{base, {dir("a"), file("a/new", "5"), file(".wh.a", "")}},
			[]string{"a/", "a/new 5", "b 4"}},
		"own file survives": {[][]tar.Header{base, {file("b", "5"), file(".wh.b", "")}},
			[]string{"a/", "a/sub/", "a/sub/z 3", "a/x 1", "a/y 2", "b 5"}},
		"again in a third layer": {[][]tar.Header{base, {file(".wh.a", "")}, {file("a/x", "7")}},
			[]string{"a/", "a/x 7", "b 4"}},
		"added in the second, gone in the third": {[][]tar.Header{base, {file("c", "8")}, {file(".wh.c", "")}},
			[]string{"a/", "a/sub/", "a/sub/z 3", "a/x 1", "a/y 2", "b 4"}},
		"hard link keeps what its other name lost": {[][]tar.Header{{file("a", "1"), hardlink("b", "a")}, {file("a", "2")}, {file(".wh.a", "")}},
			[]string{"b 1"}},
		"opaque root": {[][]tar.Header{base, {file(".wh..wh..opq", ""), file("n", "9")}},
			[]string{"n 9"}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b, _ := newBuilder(t)
			addLayers(t, b, c.layers...)
			want(t, b, c.want...)
		})
	}
}

// TestPlainTarHasNoWhiteouts: only images have layers; elsewhere such a name is
// a file like any other.
func TestPlainTarHasNoWhiteouts(t *testing.T) {
	b, _ := newBuilder(t)
	if err := b.AddTar(context.Background(), archive(t, file("a", "1"), file(".wh.a", "2"))); err != nil {
		t.Fatal(err)
	}
	want(t, b, ".wh.a 2", "a 1")
}

// oracle flattens layers the slow and obvious way: first everything a layer
// hides is taken away, then everything it has is put in.
type oracle map[string]string // path -> content; "/" for a directory

func (o oracle) hide(p string) {
	for have := range o {
		if have == p || strings.HasPrefix(have, p+"/") {
			delete(o, have)
		}
	}
}

func (o oracle) put(p, data string) {
	for i, c := range p {
		if dir := p[:i]; c == '/' && o[dir] != "/" {
			o.hide(dir)
			o[dir] = "/"
		}
	}
	if data != "/" || o[p] != "/" {
		o.hide(p)
	}
	o[p] = data
}

func (o oracle) lines() []string {
	var lines []string
	for p, data := range o {
		if data == "/" {
			lines = append(lines, p+"/")
		} else {
			lines = append(lines, p+" "+data)
		}
	}
	return lines
}

// TestRandomLayers holds AddLayer to the oracle, wherever in its layer a
// whiteout stands.
func TestRandomLayers(t *testing.T) {
	names := []string{"a", "b", "c"}
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		somewhere := func() string {
			p := names[rng.IntN(3)]
			for rng.IntN(3) > 0 && len(p) < 7 {
				p += "/" + names[rng.IntN(3)]
			}
			return p
		}
		b, _ := newBuilder(t)
		model := oracle{}
		for layer := range 4 {
			adds, hides := oracle{}, map[string]bool{}
			for range 1 + rng.IntN(6) {
				if data := "/"; rng.IntN(3) > 0 {
					adds.put(somewhere(), fmt.Sprint(seed, layer, rng.IntN(100)))
				} else {
					adds.put(somewhere(), data)
				}
			}
			for range rng.IntN(4) {
				p := somewhere()
				// A layer's own file cannot be a directory of what it hides.
				if parent := path.Dir(p); parent == "." || adds[parent] == "/" {
					hides[p] = true
				}
			}
			for p := range hides {
				model.hide(p)
			}
			var headers []tar.Header
			for _, p := range slices.Sorted(maps.Keys(adds)) {
				model.put(p, adds[p])
				if adds[p] == "/" {
					headers = append(headers, dir(p))
				} else {
					headers = append(headers, file(p, adds[p]))
				}
			}
			for p := range hides {
				// Anywhere behind its directory.
				first := 1 + slices.IndexFunc(headers, func(h tar.Header) bool { return h.Name == path.Dir(p)+"/" })
				at := first + rng.IntN(len(headers)-first+1)
				headers = slices.Insert(headers, at, file(path.Join(path.Dir(p), ".wh."+path.Base(p)), ""))
			}
			addLayers(t, b, headers)
		}
		got := dump(t, b)
		slices.Sort(got)
		if expect := slices.Sorted(slices.Values(model.lines())); !slices.Equal(got, expect) {
			t.Fatalf("seed %d:\n got %q\nwant %q", seed, got, expect)
		}
	}
}
