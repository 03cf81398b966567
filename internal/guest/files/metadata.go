package files

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Metadata is kept in extended attributes of the user namespace, so that code
// in the sandbox can read and write it too.
const (
	metadataHeader = "X-Metadata-"
	attrPrefix     = "user.e2b."
	maxAttrKey     = 246  // with the prefix, what Linux allows
	maxAttrTotal   = 4096 // of all keys and values of a file
)

// metadataOf reads the metadata that a request sets. Keys are lower case on
// disk, because the case of header names does not survive HTTP.
func metadataOf(h http.Header) (map[string]string, error) {
	var data map[string]string
	total := 0
	for name, values := range h {
		if !strings.HasPrefix(name, metadataHeader) {
			continue
		}
		key := strings.ToLower(name[len(metadataHeader):])
		if key == "" || len(key) > maxAttrKey {
			return nil, fmt.Errorf("%s: the key has %d bytes, allowed are 1 to %d", name, len(key), maxAttrKey)
		}
		if len(values) != 1 {
			return nil, fmt.Errorf("%s is given %d times", name, len(values))
		}
		if !printable(values[0]) {
			return nil, fmt.Errorf("%s: the value is not printable ASCII", name)
		}
		if total += len(key) + len(values[0]); total > maxAttrTotal {
			return nil, fmt.Errorf("%s*: the metadata has more than %d bytes", metadataHeader, maxAttrTotal)
		}
		if data == nil {
			data = make(map[string]string)
		}
		data[key] = values[0]
	}
	return data, nil
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// replaceMetadata makes data the file's only metadata.
func replaceMetadata(f *os.File, data map[string]string) error {
	fd := int(f.Fd())
	names, err := attrNames(func(buf []byte) (int, error) { return unix.Flistxattr(fd, buf) })
	if err != nil && !noAttributes(err) {
		return fmt.Errorf("list metadata: %w", err)
	}
	for _, name := range names {
		if err := unix.Fremovexattr(fd, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove metadata: %w", err)
		}
	}
	for key, value := range data {
		if err := unix.Fsetxattr(fd, attrPrefix+key, []byte(value), 0); err != nil {
			return fmt.Errorf("set metadata %q: %w", key, err)
		}
	}
	return nil
}

// readMetadata returns a path's metadata, nil without any. What cannot be read,
// for lack of rights or of support by the file system, counts as none.
func readMetadata(path string) map[string]string {
	names, err := attrNames(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
	if err != nil {
		return nil
	}
	var data map[string]string
	for _, name := range names {
		value, err := sized(func(buf []byte) (int, error) { return unix.Getxattr(path, name, buf) })
		if err != nil {
			continue
		}
		if data == nil {
			data = make(map[string]string)
		}
		// Anyone may have written it: it must still be valid in a message.
		data[strings.ToValidUTF8(name[len(attrPrefix):], "\uFFFD")] = strings.ToValidUTF8(string(value), "\uFFFD")
	}
	return data
}

// attrNames returns the names of the metadata attributes that list yields.
func attrNames(list func([]byte) (int, error)) ([]string, error) {
	raw, err := sized(list)
	if err != nil {
		return nil, err
	}
	var names []string
	for name := range strings.SplitSeq(string(raw), "\x00") {
		if strings.HasPrefix(name, attrPrefix) {
			names = append(names, name)
		}
	}
	return names, nil
}

// sized calls get with a buffer that is large enough for its answer.
func sized(get func([]byte) (int, error)) ([]byte, error) {
	for {
		size, err := get(nil)
		if err != nil || size <= 0 {
			return nil, err
		}
		buf := make([]byte, size)
		if size, err = get(buf); err == nil {
			return buf[:size], nil
		}
		if !errors.Is(err, unix.ERANGE) {
			return nil, err
		}
		// It grew in between.
	}
}

// noAttributes reports whether a file system has no extended attributes.
func noAttributes(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENOSYS)
}
