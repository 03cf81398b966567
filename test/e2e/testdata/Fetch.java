import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

/** Fetch asks for the page of a URL, over HTTP/1.1 and over HTTP/2, and prints what comes. */
class Fetch {
    public static void main(String[] args) throws Exception {
        for (var version : HttpClient.Version.values()) {
            var client = HttpClient.newBuilder().version(version).build();
            var request = HttpRequest.newBuilder(URI.create(args[0])).header("Authorization", "mine").header("authorization", "too").build();
            var response = client.send(request, BodyHandlers.ofString());
            if (response.version() != version) {
                throw new Exception("asked over " + version + ", answered over " + response.version());
            }
            System.out.println(response.body());
        }
    }
}
