package image

import (
	"bytes"
	"errors"
	"testing"
	"testing/fstest"
)

func TestBinaryIsReturnedAsItIs(t *testing.T) {
	want := []byte("\x7fELF…")
	got, err := binary(fstest.MapFS{"moat-guest": {Data: want}, "moat-guest.txt": {Data: []byte("note")}})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("binary = %q, %v; want %q", got, err, want)
	}
}

func TestMissingBinaryIsClear(t *testing.T) {
	for name, files := range map[string]fstest.MapFS{
		"absent": {"moat-guest.txt": {Data: []byte("note")}},
		"empty":  {"moat-guest": {}},
	} {
		if _, err := binary(files); !errors.Is(err, ErrMissing) {
			t.Errorf("%s: error = %v, want ErrMissing", name, err)
		}
	}
}
