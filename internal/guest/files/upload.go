package files

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// written describes a file that was written, exactly as clients compare it.
type written struct {
	Name     string            `json:"name"`
	Path     string            `json:"path"`
	Type     string            `json:"type"`
	Metadata map[string]string `json:"metadata,omitempty"`
}

// uploading is one request that writes files.
type uploading struct {
	*request
	metadata map[string]string
	files    []written
}

// upload writes the files of a request.
func (c *Contents) upload(w http.ResponseWriter, r *http.Request) error {
	req, err := c.admit(r, session.Write)
	if err != nil {
		return err
	}
	u := &uploading{request: req, files: []written{}}
	if u.metadata, err = metadataOf(r.Header); err != nil {
		return refuse(http.StatusBadRequest, "%s", err)
	}
	body, err := decoded(r)
	if err != nil {
		return err
	}
	kind, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return refuse(http.StatusBadRequest, "Content-Type: %s", err)
	}
	switch {
	case kind == "multipart/form-data" && params["boundary"] != "":
		err = u.form(multipart.NewReader(body, params["boundary"]))
	case kind == "application/octet-stream":
		if !req.query.Has("path") {
			return refuse(http.StatusBadRequest, "path: the query must have it for an upload of type %s", kind)
		}
		err = u.store(req.query.Get("path"), body)
	default:
		return refuse(http.StatusBadRequest, "Content-Type %q is not supported, only multipart/form-data with a boundary and application/octet-stream are", kind)
	}
	if err != nil {
		return err
	}
	wire.WriteJSON(w, http.StatusOK, u.files)
	return nil
}

// form writes every part of a form, which must all be named "file".
func (u *uploading) form(form *multipart.Reader) error {
	for {
		part, err := form.NextRawPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return refuse(http.StatusBadRequest, "the form is malformed: %s", err)
		}
		field, path, err := partNames(part.Header.Get("Content-Disposition"))
		if err != nil {
			return refuse(http.StatusBadRequest, "%s", err)
		}
		if field != "file" {
			return refuse(http.StatusBadRequest, "form field %q is unknown, files are named \"file\"", field)
		}
		if u.query.Has("path") {
			path = u.query.Get("path")
		}
		if path == "" {
			return refuse(http.StatusBadRequest, "a file has neither a file name nor a path in the query")
		}
		if err := u.store(path, part); err != nil {
			return err
		}
	}
}

// partNames reads a part's Content-Disposition: the name of its field and its
// file name as it is. That is a whole path here, so the usual accessor, which
// strips directories, will not do.
func partNames(disposition string) (field, file string, err error) {
	kind, params, err := mime.ParseMediaType(disposition)
	if err != nil {
		return "", "", errors.New("a form part's Content-Disposition is malformed")
	}
	if kind != "form-data" {
		return "", "", errors.New("a form part's Content-Disposition is not form-data")
	}
	return params["name"], params["filename"], nil
}

// store writes one file with all that belongs to it.
func (u *uploading) store(given string, content io.Reader) error {
	if strings.HasSuffix(given, "/") {
		return refuse(http.StatusBadRequest, "path is a directory: %s", given)
	}
	path, err := u.resolve(given)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(u.files, func(f written) bool { return f.Path == path }) {
		return refuse(http.StatusBadRequest, "you cannot upload multiple files to the same path '%s' in one upload request", path)
	}
	file, err := u.create(path)
	if err != nil {
		return err
	}
	err = fill(file, content)
	if err == nil {
		err = replaceMetadata(file, u.metadata)
	}
	if err = errors.Join(err, file.Close()); err != nil {
		if wire.NoSpace(err) {
			return refuse(http.StatusInsufficientStorage, "not enough disk space to write '%s'", path)
		}
		return err
	}
	u.files = append(u.files, written{Name: filepath.Base(path), Path: path, Type: "file", Metadata: u.metadata})
	return nil
}

// fill copies the content. A body that breaks off is the caller's fault, a
// write that fails is not.
func fill(file *os.File, content io.Reader) error {
	_, err := io.Copy(file, content)
	var failed *os.PathError
	if err == nil || errors.As(err, &failed) {
		return err
	}
	return refuse(http.StatusBadRequest, "read the body: %s", err)
}

// create opens a file for writing as the user, with the directories it needs.
// What is not a regular file is left alone.
func (u *uploading) create(path string) (*os.File, error) {
	var file *os.File
	err := u.user.Do(func() error {
		if err := os.MkdirAll(filepath.Dir(path), newDirMode); err != nil {
			return err
		}
		info, err := os.Stat(path)
		switch {
		case err == nil && info.IsDir():
			return refuse(http.StatusBadRequest, "path is a directory: %s", path)
		case err == nil && !info.Mode().IsRegular():
			return refuse(http.StatusBadRequest, "path is not a regular file: %s", path)
		}
		file, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NONBLOCK, 0o666)
		return err
	})
	return file, err
}
