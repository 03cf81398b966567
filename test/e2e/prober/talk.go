package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/coder/websocket"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// talkTime bounds a talk.
const talkTime = 20 * time.Second

// talk sends some messages to the laboratory's site, one after the other, each
// when the one before has come back.
func talk(protocol, url string) error {
	ctx, cancel := context.WithTimeout(context.Background(), talkTime)
	defer cancel()
	exchange := overGRPC
	if protocol == "websocket" {
		exchange = overWebSocket
	}
	return exchange(ctx, url, []string{"one", "two", "three"})
}

func overGRPC(ctx context.Context, url string, messages []string) error {
	method := connect.NewClient[wrapperspb.StringValue, wrapperspb.StringValue](http.DefaultClient, url+"/lab.Echo/Echo", connect.WithGRPC())
	stream := method.CallBidiStream(ctx)
	stream.RequestHeader().Set("Authorization", "mine")
	for _, message := range messages {
		if err := stream.Send(wrapperspb.String(message)); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		got, err := stream.Receive()
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if got.GetValue() != message {
			return fmt.Errorf("got %q, want %q", got.GetValue(), message)
		}
	}
	if err := stream.CloseRequest(); err != nil {
		return err
	}
	return stream.CloseResponse() // fails without a status in the trailer
}

func overWebSocket(ctx context.Context, url string, messages []string) error {
	header := http.Header{"Authorization": {"mine"}}
	conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{HTTPHeader: header})
	if err != nil {
		return err
	}
	defer conn.CloseNow()
	for _, message := range messages {
		if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			return err
		}
		_, got, err := conn.Read(ctx)
		if err != nil {
			return err
		}
		if string(got) != message {
			return fmt.Errorf("got %q, want %q", got, message)
		}
	}
	return conn.Close(websocket.StatusNormalClosure, "")
}
