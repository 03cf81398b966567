package client

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/moat-sandbox/moat/api/filesystem"
)

// Files reads and changes a sandbox's files. Relative paths and "~" start at
// the user's home.
type Files struct {
	rpc        filesystem.FilesystemClient
	door       *door
	base, user string
}

// Read opens a file for reading. The caller must close it.
func (f *Files) Read(ctx context.Context, path string) (io.ReadCloser, error) {
	answer, err := f.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, wrap("read file", err)
	}
	return answer.Body, nil
}

// Write creates or replaces a file with what it reads from content, making
// parent directories as needed.
func (f *Files) Write(ctx context.Context, path string, content io.Reader) error {
	answer, err := f.request(ctx, http.MethodPost, path, content)
	if err != nil {
		return wrap("write file", err)
	}
	defer answer.Body.Close()
	var written []struct {
		Path string `json:"path"`
	}
	if err := json.NewDecoder(io.LimitReader(answer.Body, answerLimit)).Decode(&written); err != nil {
		return fmt.Errorf("write file: read answer: %w", err)
	}
	return nil
}

func (f *Files) request(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	query := url.Values{"path": {path}}
	if f.user != "" {
		query.Set("username", f.user)
	}
	target := strings.TrimSuffix(f.base, "/") + "/files?" + query.Encode()
	req, err := http.NewRequestWithContext(ctx, method, target, body)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	answer, err := f.door.Do(req)
	if err == nil && answer.StatusCode >= http.StatusMultipleChoices {
		defer answer.Body.Close()
		return nil, readError(answer)
	}
	return answer, err
}

// Stat describes a file or directory.
func (f *Files) Stat(ctx context.Context, path string) (*filesystem.EntryInfo, error) {
	answer, err := f.rpc.Stat(ctx, &filesystem.StatRequest{Path: path})
	return answer.GetEntry(), wrap("stat file", fromCall(err))
}

// List lists a directory, sorted by path.
func (f *Files) List(ctx context.Context, dir string) ([]*filesystem.EntryInfo, error) {
	answer, err := f.rpc.ListDir(ctx, &filesystem.ListDirRequest{Path: dir, Depth: 1})
	return answer.GetEntries(), wrap("list directory", fromCall(err))
}

// MakeDir creates a directory and its parents. One that exists is an *Error
// with status 409.
func (f *Files) MakeDir(ctx context.Context, path string) error {
	_, err := f.rpc.MakeDir(ctx, &filesystem.MakeDirRequest{Path: path})
	return wrap("make directory", fromCall(err))
}

// Rename moves a file or directory.
func (f *Files) Rename(ctx context.Context, from, to string) error {
	_, err := f.rpc.Move(ctx, &filesystem.MoveRequest{Source: from, Destination: to})
	return wrap("rename file", fromCall(err))
}

// Remove deletes a file or a directory with all that is in it. A missing one is
// no error.
func (f *Files) Remove(ctx context.Context, path string) error {
	_, err := f.rpc.Remove(ctx, &filesystem.RemoveRequest{Path: path})
	return wrap("remove file", fromCall(err))
}
