// Starts whichever viewer the page has loaded on the document that is served next to the page.
"use strict";

const specification = new URL("openapi.json", document.baseURI).href;

if (window.SwaggerUIBundle) {
  window.SwaggerUIBundle({
    url: specification,
    dom_id: "#swagger-ui",
    deepLinking: true,
    // The default sends the document's address to a validator on the network.
    validatorUrl: null,
  });
} else if (window.Redoc) {
  window.Redoc.init(specification, {}, document.getElementById("redoc"));
}
