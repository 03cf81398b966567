// Package process holds the wire types, client and handler interface of the guest
// daemon's process service, generated from process.proto.
package process

//go:generate sh -c "protoc -I .. --plugin=protoc-gen-go=$(go tool -n protoc-gen-go) --plugin=protoc-gen-connect-go=$(go tool -n protoc-gen-connect-go) --go_out=.. --go_opt=paths=source_relative --connect-go_out=.. --connect-go_opt=paths=source_relative,package_suffix,simple process/process.proto"
