// Package filesystem holds the wire types, client and handler interface of the guest
// daemon's filesystem service, generated from filesystem.proto.
package filesystem

//go:generate sh -c "protoc -I .. --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-connect-go=$(go tool -n protoc-gen-connect-go) --go_out=.. --go_opt=paths=source_relative --connect-go_out=.. --connect-go_opt=paths=source_relative,package_suffix,simple filesystem/filesystem.proto"
