package template

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"runtime"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/moat-sandbox/moat/internal/store"
	"github.com/moat-sandbox/moat/internal/template/rootfs"
)

// maxLayers is what container engines allow, too.
const maxLayers = 127

// AddImage makes a template of an OCI image for this machine's architecture.
// Names that belong to other templates move to it. The image's environment,
// user and working directory become those of commands.
//
// A registry that needs a login gets what the server's user has stored for it,
// as container tools do. With insecure the registry may be plain HTTP or show
// a certificate that nobody vouches for, and never gets a login.
func (l *Library) AddImage(ctx context.Context, ref string, names []string, insecure bool) (store.Template, error) {
	var parse []name.Option
	options := []remote.Option{remote.WithContext(ctx), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})}
	if insecure {
		transport := remote.DefaultTransport.(*http.Transport).Clone()
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // what the operator asked for
		defer transport.CloseIdleConnections()
		parse = append(parse, name.Insecure)
		options = append(options, remote.WithTransport(transport), remote.WithAuth(authn.Anonymous))
	} else {
		options = append(options, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	}
	parsed, err := name.ParseReference(ref, parse...)
	if err != nil {
		return store.Template{}, fmt.Errorf("add template from image %.300q: %w", ref, err)
	}
	return l.add(ctx, names, source{
		description: "image " + parsed.Name(),
		fill: func(ctx context.Context, b *rootfs.Builder) (settings, error) {
			image, err := remote.Image(parsed, options...)
			if err != nil {
				return settings{}, fmt.Errorf("fetch manifest: %w", err)
			}
			return addImage(ctx, b, image)
		},
	})
}

// addImage adds an image's layers, lowest first.
func addImage(ctx context.Context, b *rootfs.Builder, image v1.Image) (settings, error) {
	manifest, err := image.Manifest()
	if err != nil {
		return settings{}, fmt.Errorf("read manifest: %w", err)
	}
	if n := len(manifest.Layers); n == 0 || n > maxLayers {
		return settings{}, fmt.Errorf("image has %d layers: not 1 to %d", n, maxLayers)
	}
	for _, layer := range manifest.Layers {
		// A layer may name other places to get it from; those are not asked.
		if len(layer.URLs) > 0 || !layer.MediaType.IsDistributable() {
			return settings{}, fmt.Errorf("layer %s is not in the registry", layer.Digest)
		}
	}
	config, err := image.ConfigFile()
	if err != nil {
		return settings{}, fmt.Errorf("read configuration: %w", err)
	}
	layers, err := image.Layers()
	if err != nil {
		return settings{}, fmt.Errorf("read layers: %w", err)
	}
	for _, layer := range layers {
		if err := addLayer(ctx, b, layer); err != nil {
			return settings{}, err
		}
	}
	return settings{
		Defaults: rootfs.Defaults{User: config.Config.User, Workdir: config.Config.WorkingDir},
		Env:      config.Config.Env,
	}, nil
}

func addLayer(ctx context.Context, b *rootfs.Builder, layer v1.Layer) error {
	digest, err := layer.Digest()
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	data, err := layer.Uncompressed()
	if err != nil {
		return fmt.Errorf("fetch layer %s: %w", digest, err)
	}
	if err := errors.Join(b.AddLayer(ctx, data), data.Close()); err != nil {
		return fmt.Errorf("layer %s: %w", digest, err)
	}
	return nil
}
