package files

import (
	"compress/gzip"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// wantsGzip reads Accept-Encoding: whether to compress, or a refusal when
// neither gzip nor plain content would do. Plain content is used unless gzip is
// asked for at least as much.
func wantsGzip(h http.Header) (bool, error) {
	gzipped, plain, other := -1.0, -1.0, -1.0 // -1: not mentioned
	for item := range strings.SplitSeq(strings.Join(h.Values("Accept-Encoding"), ","), ",") {
		name, params, _ := strings.Cut(item, ";")
		quality := 1.0
		for param := range strings.SplitSeq(params, ";") {
			key, value, _ := strings.Cut(param, "=")
			if strings.EqualFold(strings.TrimSpace(key), "q") {
				q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				if err != nil || q < 0 || q > 1 {
					return false, refuse(http.StatusBadRequest, "Accept-Encoding: %q is not a quality", value)
				}
				quality = q
			}
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "gzip", "x-gzip":
			gzipped = quality
		case "identity":
			plain = quality
		case "*":
			other = quality
		}
	}
	if gzipped < 0 && plain == 0 {
		gzipped = other
	}
	if plain < 0 && other == 0 {
		plain = 0
	}
	switch {
	case gzipped > 0 && gzipped >= plain:
		return true, nil
	case plain == 0:
		return false, refuse(http.StatusNotAcceptable, "no acceptable encoding: only gzip and identity are supported")
	}
	return false, nil
}

// decoded returns the request's body without its Content-Encoding.
func decoded(r *http.Request) (io.Reader, error) {
	switch encoding := strings.ToLower(r.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
		return r.Body, nil
	case "gzip", "x-gzip":
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "the body is not gzip: %s", err)
		}
		return z, nil
	default:
		return nil, refuse(http.StatusBadRequest, "Content-Encoding %q is not supported, only gzip and identity are", encoding)
	}
}
