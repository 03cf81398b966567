package files

import (
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"github.com/moat-sandbox/moat/internal/guest/session"
)

// download answers with the content of a file. Its errors come before any part
// of the answer.
func (c *Contents) download(w http.ResponseWriter, r *http.Request) error {
	req, err := c.admit(r, session.Read)
	if err != nil {
		return err
	}
	path, err := req.resolve(req.query.Get("path"))
	if err != nil {
		return err
	}
	compress, err := wantsGzip(r.Header)
	if err != nil {
		return err
	}
	file, info, err := openFile(req, path)
	if err != nil {
		return err
	}
	defer file.Close()

	w.Header().Set("Vary", "Accept-Encoding")
	w.Header().Set("Content-Disposition", mime.FormatMediaType("inline", map[string]string{"filename": info.Name()}))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case info.Size() == 0:
		// Empty, or a file such as those in /proc whose size says nothing.
		w.Header().Set("Content-Type", "application/octet-stream")
		_, err = io.Copy(w, file)
	case compress && !partial(r.Header):
		err = sendGzip(w, r, file)
	default:
		http.ServeContent(w, r, info.Name(), info.ModTime(), file)
	}
	if err != nil {
		c.log.Warn("download broke off", "path", path, "error", err)
		panic(http.ErrAbortHandler) // the only way to tell the client that this is not all
	}
	return nil
}

// openFile opens a regular file as the user. Other kinds are not opened at all:
// that alone can block, or do something.
func openFile(req *request, path string) (*os.File, os.FileInfo, error) {
	var file *os.File
	var info os.FileInfo
	err := req.user.Do(func() (err error) {
		if info, err = os.Stat(path); err != nil || !info.Mode().IsRegular() {
			return err
		}
		file, err = os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return nil, nil, refuse(http.StatusNotFound, "path '%s' does not exist", path)
	case err != nil:
		return nil, nil, err
	case info.IsDir():
		return nil, nil, refuse(http.StatusBadRequest, "path '%s' is a directory", path)
	case file == nil:
		return nil, nil, refuse(http.StatusBadRequest, "path '%s' is not a regular file", path)
	}
	return file, info, nil
}

// partial reports whether only a part of the file, or nothing, may be asked
// for, which compression would get in the way of.
func partial(h http.Header) bool {
	for _, name := range []string{"Range", "If-Range", "If-Modified-Since", "If-Unmodified-Since", "If-None-Match", "If-Match"} {
		if h.Get(name) != "" {
			return true
		}
	}
	return false
}

func sendGzip(w http.ResponseWriter, r *http.Request, file *os.File) error {
	kind := mime.TypeByExtension(filepath.Ext(file.Name()))
	if kind == "" {
		kind = "application/octet-stream"
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Content-Encoding", "gzip")
	if r.Method == http.MethodHead {
		return nil
	}
	// Speed: the network below is a virtual one.
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if _, err := io.Copy(z, file); err != nil {
		return err
	}
	return z.Close()
}
